/* The text behind edgeseg_last_error(). */
#ifndef EDGESEG_ERROR_H
#define EDGESEG_ERROR_H

#include "edgeseg.h"

/* Sets this thread's text and returns status. */
int fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "out of memory for WHAT". */
int fail_memory(const char *what);

#endif
