/* Finding an engine's shared library. */
#define _GNU_SOURCE /* dladdr, secure_getenv */
#include "engine.h"
#include "error.h"

#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_ROOM 4096

static void *load(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE); }

/* site-packages, where this library lies in site-packages/edgeseg/lib/. */
static bool packages_folder(char *folder) {
    Dl_info about;
    /* A data symbol: a function's address may be that of the program's own jump table. */
    static const char here = 0;
    if (dladdr(&here, &about) == 0 || about.dli_fname == NULL ||
        strlen(about.dli_fname) >= PATH_ROOM) {
        return false;
    }
    (void)snprintf(folder, PATH_ROOM, "%s", about.dli_fname);
    for (int i = 0; i < 3; i++) {
        char *slash = strrchr(folder, '/');
        if (slash == NULL || slash == folder) {
            return false;
        }
        *slash = '\0';
    }
    return true;
}

/* The first file of a folder by name that starts with prefix and can be loaded. */
static void *load_beside(const struct engine_files *files, char *path) {
    char packages[PATH_ROOM], folder[PATH_ROOM], best[PATH_ROOM] = "";
    if (!packages_folder(packages) ||
        snprintf(folder, sizeof folder, "%s/%s", packages, files->beside) >= PATH_ROOM) {
        return NULL;
    }
    DIR *entries = opendir(folder);
    if (entries == NULL) {
        return NULL;
    }
    const struct dirent *entry;
    while ((entry = readdir(entries)) != NULL) {
        if (strncmp(entry->d_name, files->prefix, strlen(files->prefix)) == 0 &&
            (best[0] == '\0' || strcmp(entry->d_name, best) < 0)) {
            (void)snprintf(best, sizeof best, "%s", entry->d_name);
        }
    }
    (void)closedir(entries);
    if (best[0] == '\0' || snprintf(path, PATH_ROOM, "%s/%s", folder, best) >= PATH_ROOM) {
        return NULL;
    }
    return load(path);
}

static void keep_name(char library[ENGINE_NAME_ROOM], const char *name) {
    /* The end of a path says more than its beginning. */
    const size_t length = strlen(name);
    const size_t skipped = length >= ENGINE_NAME_ROOM ? length - ENGINE_NAME_ROOM + 1 : 0;
    memcpy(library, name + skipped, length - skipped + 1);
}

int engine_load(const char *engine, const struct engine_files *files, const char *wanted,
                void **handle, char library[ENGINE_NAME_ROOM]) {
    char path[PATH_ROOM];
    const char *variable = secure_getenv(files->variable);
    const char *named = wanted != NULL ? wanted : variable;
    if (named != NULL && named[0] != '\0') {
        *handle = load(named);
        if (*handle == NULL) {
            /* The loader tells which of the library's own needs is missing. */
            const char *reason = dlerror();
            return fail(EDGESEG_STATUS_MISSING, "engine '%s' cannot be loaded from '%s' (%s)",
                        engine, named, reason == NULL ? "no reason given" : reason);
        }
        keep_name(library, named);
        return EDGESEG_STATUS_OK;
    }
    *handle = load_beside(files, path);
    if (*handle != NULL) {
        keep_name(library, path);
        return EDGESEG_STATUS_OK;
    }
    for (const char *const *name = files->system; *name != NULL; name++) {
        *handle = load(*name);
        if (*handle != NULL) {
            keep_name(library, *name);
            return EDGESEG_STATUS_OK;
        }
    }
    return fail(EDGESEG_STATUS_MISSING,
                "engine '%s' was not found; install it, or name its library in %s", engine,
                files->variable);
}
