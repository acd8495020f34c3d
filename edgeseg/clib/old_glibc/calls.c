/* stat and fstat as programs had them before glibc 2.33 exported them; see symbols.h. */
struct stat;

int __xstat(int version, const char *path, struct stat *found);
int __fxstat(int version, int handle, struct stat *found);
int stat(const char *path, struct stat *found);
int fstat(int handle, struct stat *found);

int stat(const char *path, struct stat *found) { return __xstat(0, path, found); }

int fstat(int handle, struct stat *found) { return __fxstat(0, handle, found); }
