#define _GNU_SOURCE
#include "files.h"

#include "error.h"
#include "sha256.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK ((size_t)64 << 10)

char *join_path(const char *folder, const char *name) {
    const size_t size = strlen(folder) + strlen(name) + 2;
    char *path = malloc(size);
    if (path != NULL) {
        (void)snprintf(path, size, "%s/%s", folder, name);
    }
    return path;
}

static int fail_file(const char *path) {
    char reason[128];
    /* The GNU form, thread-safe where strerror is not. */
    const char *text = strerror_r(errno, reason, sizeof reason);
    return fail(EDGESEG_STATUS_INPUT, "'%s' cannot be read (%s); copy it again", path, text);
}

static int read_all(int handle, const char *path, int keep, struct file *file) {
    uint8_t *buffer = malloc(keep ? file->size + 1 : CHUNK);
    if (buffer == NULL) {
        return fail_memory(path);
    }
    struct sha256 sha;
    sha256_start(&sha);
    size_t done = 0;
    int status = EDGESEG_STATUS_OK;
    while (done < file->size) {
        uint8_t *to = keep ? buffer + done : buffer;
        const size_t wanted = file->size - done < CHUNK ? file->size - done : CHUNK;
        const ssize_t got = read(handle, to, wanted);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            errno = got < 0 ? errno : EIO; /* it became shorter meanwhile */
            status = fail_file(path);
            break;
        }
        sha256_add(&sha, to, (size_t)got);
        done += (size_t)got;
    }
    if (status != EDGESEG_STATUS_OK || !keep) {
        free(buffer);
    } else {
        buffer[file->size] = '\0';
        file->content = buffer;
    }
    sha256_finish(&sha, file->sha256);
    return status;
}

int file_read(const char *path, size_t limit, int keep, struct file *file) {
    *file = (struct file){0};
    struct stat about;
    /* Not blocking: opening a FIFO would wait for its writer. */
    const int handle = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (handle < 0) {
        return fail_file(path);
    }
    int status;
    if (fstat(handle, &about) != 0) {
        status = fail_file(path);
    } else if (!S_ISREG(about.st_mode)) {
        status = fail(EDGESEG_STATUS_INPUT, "'%s' is not a file; copy it again", path);
    } else if (about.st_size < 0 || (uint64_t)about.st_size > limit) {
        status = fail(EDGESEG_STATUS_ARTEFACT, "'%s' is larger than any such file; it is damaged",
                      path);
    } else {
        file->size = (size_t)about.st_size;
        status = read_all(handle, path, keep, file);
    }
    (void)close(handle);
    return status;
}

void file_free(struct file *file) {
    free(file->content);
    file->content = NULL;
}
