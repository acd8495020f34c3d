/* Structs that start with their size: a caller may know fewer or more fields than the library. */
#ifndef EDGESEG_SIZED_H
#define EDGESEG_SIZED_H

#include <stddef.h>

/* Size of a struct that ends with this field: what programs of the version that had it last give,
 * whatever has been added since. */
#define SIZE_UP_TO(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))

/* Fills to (of room bytes) with what the caller gave, and zeros beyond it. 0 where given is not a
 * struct that the library can take: smaller than the smallest that ever was (least), or larger
 * than it knows with something other than zero in what it does not know. */
int sized_in(void *to, size_t room, size_t least, const void *given);

/* Copies from (of known bytes) to the caller's struct, as much as that has room for; its size
 * field stays. 0 where that is smaller than least. */
int sized_out(void *given, const void *from, size_t known, size_t least);

#endif
