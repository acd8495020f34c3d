#include "error.h"

#include <stdarg.h>
#include <stdio.h>

/* One per thread and of fixed size, so that telling of a failure cannot fail. */
static _Thread_local char text[1024];

int fail(int status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    /* Engines tell several lines; a log wants one. */
    for (char *c = text; *c != '\0'; c++) {
        if (*c == '\n' || *c == '\r' || *c == '\t') {
            *c = ' ';
        }
    }
    return status;
}

int fail_memory(const char *what) {
    return fail(EDGESEG_STATUS_NO_MEMORY, "out of memory for %s", what);
}

const char *edgeseg_last_error(void) { return text; }

const char *edgeseg_status_name(int status) {
    switch (status) {
    case EDGESEG_STATUS_OK:
        return "ok";
    case EDGESEG_STATUS_LATE:
        return "late";
    case EDGESEG_STATUS_STALE:
        return "stale";
    case EDGESEG_STATUS_ENGINE:
        return "engine";
    case EDGESEG_STATUS_ARGUMENT:
        return "argument";
    case EDGESEG_STATUS_MISSING:
        return "missing";
    case EDGESEG_STATUS_ARTEFACT:
        return "artefact";
    case EDGESEG_STATUS_NO_MEMORY:
        return "no memory";
    case EDGESEG_STATUS_NO_THREAD:
        return "no thread";
    case EDGESEG_STATUS_INPUT:
        return "input";
    default:
        return "unknown";
    }
}

#define QUOTED(x) #x
#define VERSION(major, minor, patch) QUOTED(major) "." QUOTED(minor) "." QUOTED(patch)

const char *edgeseg_version(void) {
    return VERSION(EDGESEG_VERSION_MAJOR, EDGESEG_VERSION_MINOR, EDGESEG_VERSION_PATCH);
}
