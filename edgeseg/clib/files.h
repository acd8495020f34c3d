/* Files of bounded size. */
#ifndef EDGESEG_FILES_H
#define EDGESEG_FILES_H

#include <stddef.h>
#include <stdint.h>

struct file {
    uint8_t *content; /* ended by a NUL that size does not count; NULL where it was not kept */
    size_t size;
    char sha256[65];
};

/* "folder/name", to be freed; NULL without memory. */
char *join_path(const char *folder, const char *name);

/* Reads a regular file of at most limit bytes and hashes what it read. keep: whether content is
 * wanted. Errors: INPUT (not there, unreadable), ARTEFACT (too large), NO_MEMORY. */
int file_read(const char *path, size_t limit, int keep, struct file *file);
void file_free(struct file *file);

#endif
