/* Just enough of an image format to read frames and write results without a library: binary PPM
 * (P6, RGB), and raw files. */
#ifndef NETPBM_H
#define NETPBM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* RGB pixels to be freed, or NULL. */
static inline uint8_t *read_ppm(const char *path, int32_t *height, int32_t *width) {
    FILE *file = fopen(path, "rb");
    uint8_t *pixels = NULL;
    int rows = 0, columns = 0, most = 0;
    if (file == NULL) {
        return NULL;
    }
    if (fscanf(file, "P6 %d %d %d", &columns, &rows, &most) == 3 && fgetc(file) != EOF &&
        most == 255 && rows > 0 && rows <= 16384 && columns > 0 && columns <= 16384) {
        const size_t size = (size_t)rows * (size_t)columns * 3;
        pixels = (uint8_t *)malloc(size);
        if (pixels != NULL && fread(pixels, 1, size, file) != size) {
            free(pixels);
            pixels = NULL;
        }
    }
    (void)fclose(file);
    *height = rows;
    *width = columns;
    return pixels;
}

/* 0 where it was written whole. */
static inline int write_raw(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    if (file == NULL) {
        return -1;
    }
    const size_t written = fwrite(data, 1, size, file);
    return fclose(file) == 0 && written == size ? 0 : -1;
}

#endif
