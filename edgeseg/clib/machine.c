#define _GNU_SOURCE /* sched_getaffinity */
#include "machine.h"

#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static bool read_line(const char *path, char *line, size_t size) {
    const int handle = open(path, O_RDONLY | O_CLOEXEC);
    if (handle < 0) {
        return false;
    }
    const ssize_t got = read(handle, line, size - 1);
    (void)close(handle);
    line[got > 0 ? got : 0] = '\0';
    return got > 0;
}

/* "0,64" and "0-1" both start with the lowest thread of the core, which names it. */
static size_t core_of(size_t cpu) {
    char path[96], line[64];
    (void)snprintf(path, sizeof path,
                   "/sys/devices/system/cpu/cpu%zu/topology/thread_siblings_list", cpu);
    return read_line(path, line, sizeof line) ? strtoul(line, NULL, 10) : cpu;
}

/* Whole cores of it, at least 1; 0 where there is no quota. With a thread more than it allows, the
 * system would stop all of them for a part of every period. */
static int cgroup_quota(void) {
    char line[64], *rest;
    if (!read_line("/sys/fs/cgroup/cpu.max", line, sizeof line)) {
        return 0;
    }
    const long limit = strtol(line, &rest, 10); /* "max" is no number and gives 0 */
    const long period = strtol(rest, NULL, 10);
    if (limit <= 0 || period <= 0) {
        return 0;
    }
    const long cores = limit / period;
    return cores < 1 ? 1 : cores > 1024 ? 1024 : (int)cores;
}

int available_cores(void) {
    cpu_set_t allowed, cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        return 1;
    }
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, &allowed)) {
            const size_t core = core_of(cpu);
            CPU_SET(core < CPU_SETSIZE ? core : cpu, &cores);
        }
    }
    const int count = CPU_COUNT(&cores), quota = cgroup_quota();
    const int usable = quota > 0 && quota < count ? quota : count;
    return usable > 0 ? usable : 1;
}
