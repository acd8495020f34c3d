/* SHA-256 (FIPS 180-4). */
#ifndef EDGESEG_SHA256_H
#define EDGESEG_SHA256_H

#include <stddef.h>
#include <stdint.h>

struct sha256 {
    uint32_t state[8];
    uint64_t bytes;
    uint8_t block[64];
};

void sha256_start(struct sha256 *sha);
void sha256_add(struct sha256 *sha, const void *data, size_t size);
/* 64 lower-case hexadecimal digits and a NUL. */
void sha256_finish(struct sha256 *sha, char hex[65]);

#endif
