/* Worker threads owned by a handle. The caller works too, so that a call never waits for a
 * worker that the system has not woken yet: items are taken one by one from a common counter,
 * and only workers that have joined are waited for.
 */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "internal.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Waking a sleeping thread costs tens of microseconds, the tail of a run about one item (some
 * tens of microseconds too): wait that long before sleeping, not longer. */
#define SPINS 2000

struct worker {
    struct pool *pool;
    pthread_t thread;
    int slot;
};

struct pool {
    pthread_mutex_t calls; /* held by the caller of a run */
    atomic_int calls_of;   /* process that made the mutex; its negative while one is making it */
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t wake;
    pthread_cond_t done;
    pool_job job;
    void *context;
    int items;
    bool accepting;
    bool stop;
    atomic_uint generation; /* written under the mutex, also read without it while spinning */
    atomic_int active;
    atomic_int next;
    pid_t owner;
    int workers;
    struct worker *worker;
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static void work(struct pool *pool, pool_job job, void *context, int items, int slot) {
    for (;;) {
        int item = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        if (item >= items) {
            return;
        }
        job(context, slot, item);
    }
}

static void *worker_main(void *argument) {
    struct worker *self = argument;
    struct pool *pool = self->pool;
    unsigned seen = 0;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        if (pool->stop) {
            break;
        }
        unsigned generation = atomic_load(&pool->generation);
        if (generation == seen || !pool->accepting) {
            seen = generation;
            pthread_mutex_unlock(&pool->mutex);
            for (int i = 0; i < SPINS && atomic_load(&pool->generation) == seen; i++) {
                relax();
            }
            pthread_mutex_lock(&pool->mutex);
            while (!pool->stop && atomic_load(&pool->generation) == seen) {
                pthread_cond_wait(&pool->wake, &pool->mutex);
            }
            continue;
        }
        seen = generation;
        pool_job job = pool->job;
        void *context = pool->context;
        int items = pool->items;
        atomic_fetch_add(&pool->active, 1);
        pthread_mutex_unlock(&pool->mutex);
        work(pool, job, context, items, self->slot);
        pthread_mutex_lock(&pool->mutex);
        if (atomic_fetch_sub(&pool->active, 1) == 1 && !pool->accepting) {
            pthread_cond_signal(&pool->done);
        }
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

int pool_open(int threads, struct pool **out) {
    struct pool *pool = calloc(1, sizeof *pool);
    if (pool == NULL) {
        return EDGESEG_NO_MEMORY;
    }
    pool->owner = getpid();
    atomic_init(&pool->calls_of, pool->owner);
    pthread_mutex_init(&pool->calls, NULL);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pthread_cond_init(&pool->done, NULL);
    int status = EDGESEG_OK;
    if (threads > 1) {
        pool->worker = calloc((size_t)(threads - 1), sizeof *pool->worker);
        status = pool->worker == NULL ? EDGESEG_NO_MEMORY : EDGESEG_OK;
    }
    /* Signals belong to the threads of the program, not to ours. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    for (int i = 0; status == EDGESEG_OK && i < threads - 1; i++) {
        struct worker *worker = &pool->worker[i];
        worker->pool = pool;
        worker->slot = i + 1;
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0) {
            status = EDGESEG_NO_THREAD;
        } else {
            pool->workers = i + 1;
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status != EDGESEG_OK) {
        pool_close(pool);
        return status;
    }
    *out = pool;
    return EDGESEG_OK;
}

void pool_lock(struct pool *pool) {
    /* Whoever held the mutex at the moment of a fork is not in the child to let go of it. */
    const int self = (int)getpid();
    for (int of = atomic_load(&pool->calls_of); of != self; of = atomic_load(&pool->calls_of)) {
        if (of == -self) {
            relax(); /* another thread of this process is making the new one */
        } else if (atomic_compare_exchange_strong(&pool->calls_of, &of, -self)) {
            pthread_mutex_init(&pool->calls, NULL);
            atomic_store(&pool->calls_of, self);
        }
    }
    pthread_mutex_lock(&pool->calls);
}

void pool_unlock(struct pool *pool) { pthread_mutex_unlock(&pool->calls); }

void pool_run(struct pool *pool, pool_job job, void *context, int items) {
    /* A forked child has this memory but none of the threads; their mutex may be locked. */
    if (pool->workers == 0 || items < 2 || pool->owner != getpid()) {
        for (int item = 0; item < items; item++) {
            job(context, 0, item);
        }
        return;
    }
    pthread_mutex_lock(&pool->mutex);
    pool->job = job;
    pool->context = context;
    pool->items = items;
    pool->accepting = true;
    atomic_store(&pool->next, 0);
    atomic_fetch_add(&pool->generation, 1);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
    work(pool, job, context, items, 0);
    pthread_mutex_lock(&pool->mutex);
    pool->accepting = false;
    pthread_mutex_unlock(&pool->mutex);
    for (int i = 0; i < SPINS && atomic_load(&pool->active) != 0; i++) {
        relax();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load(&pool->active) != 0) {
        pthread_cond_wait(&pool->done, &pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
}

void pool_close(struct pool *pool) {
    if (pool == NULL) {
        return;
    }
    if (pool->owner == getpid()) {
        pthread_mutex_lock(&pool->mutex);
        pool->stop = true;
        /* Ends the spinning of a worker that has not gone to sleep yet. */
        atomic_fetch_add(&pool->generation, 1);
        pthread_cond_broadcast(&pool->wake);
        pthread_mutex_unlock(&pool->mutex);
        for (int i = 0; i < pool->workers; i++) {
            pthread_join(pool->worker[i].thread, NULL);
        }
        pthread_cond_destroy(&pool->done);
        pthread_cond_destroy(&pool->wake);
        pthread_mutex_destroy(&pool->mutex);
        pthread_mutex_destroy(&pool->calls);
    }
    free(pool->worker);
    free(pool);
}

void *memory_open(size_t count, size_t size) {
    if (count == 0 || size == 0 || count > (SIZE_MAX / 2) / size) {
        return NULL;
    }
    size_t bytes = (count * size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void *memory = NULL;
    if (posix_memalign(&memory, CACHE_LINE, bytes) != 0) {
        return NULL;
    }
    memset(memory, 0, bytes);
    return memory;
}

void memory_close(void *memory) { free(memory); }
