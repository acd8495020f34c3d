/* What the library needs to know of the machine. */
#ifndef EDGESEG_MACHINE_H
#define EDGESEG_MACHINE_H

#include <stdint.h>

/* CLOCK_MONOTONIC in nanoseconds. */
int64_t now_ns(void);

/* Physical cores that this process may use: its affinity, without hyper-threads, and not more
 * than a container's CPU quota. At least 1. */
int available_cores(void);

#endif
