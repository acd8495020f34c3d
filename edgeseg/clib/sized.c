#include "sized.h"

#include <string.h>

#define MOST ((size_t)4096) /* a size beyond it is not one of ours but an uninitialised struct */

int sized_in(void *to, size_t room, size_t least, const void *given) {
    size_t size;
    memcpy(&size, given, sizeof size);
    if (size < least || size > MOST) {
        return 0;
    }
    const unsigned char *bytes = given;
    for (size_t i = room; i < size; i++) {
        if (bytes[i] != 0) {
            return 0;
        }
    }
    memset(to, 0, room);
    memcpy(to, given, size < room ? size : room);
    return 1;
}

int sized_out(void *given, const void *from, size_t known, size_t least) {
    size_t size;
    memcpy(&size, given, sizeof size);
    if (size < least || size > MOST) {
        return 0;
    }
    const size_t copied = size < known ? size : known;
    memcpy((char *)given + sizeof size, (const char *)from + sizeof size, copied - sizeof size);
    memset((char *)given + copied, 0, size - copied);
    return 1;
}
