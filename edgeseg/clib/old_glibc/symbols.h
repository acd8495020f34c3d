/* Put before every source (-include) of a build for an older Linux: ask for the old versions of
 * what glibc 2.32 to 2.34 gave new ones, though nothing changed but the library that holds it.
 *
 * Without this a library linked on glibc 2.36 refuses to load on the 2.31 of Ubuntu 20.04
 * (JetPack 5). There these functions lie in libpthread.so.0 and libdl.so.2, so both must be linked
 * by name. For aarch64, whose first glibc is 2.17.
 */
#define OLD_VERSION(name) __asm__(".symver " #name "," #name "@GLIBC_2.17")

OLD_VERSION(pthread_create);
OLD_VERSION(pthread_join);
OLD_VERSION(pthread_sigmask);
OLD_VERSION(dladdr);
OLD_VERSION(dlerror);
OLD_VERSION(dlopen);
OLD_VERSION(dlsym);
OLD_VERSION(__xstat);
OLD_VERSION(__fxstat);
