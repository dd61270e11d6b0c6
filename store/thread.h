/*
 * thread — threads of our own, and the same work done by several at once.
 *
 * Signals are for the program's own threads: in ours all are blocked. Threads: any.
 */
#ifndef STORE_THREAD_H
#define STORE_THREAD_H

#include <pthread.h>

#include "store/base.h"

/* 0, or an error: the caller joins the thread. */
int thread_start(pthread_t *ret_thread, void *(*run)(void *context), void *context);

/* This thread is about to wait for the store, a disk, or somebody who does: who gave it its work
 * may let another one go on. Call it only when waiting is certain or likely. Cheap. */
void thread_about_to_block(void);
/* What that does in this thread from now on (NULL: nothing, as in every new one). */
void thread_when_blocking(void (*told)(void *context), void *context);

#define TOGETHER_MAX 32
/* The caller and up to `helpers` threads beside (TOGETHER_MAX at most; fewer when they cannot be
 * had) run it; returns when all have returned. What is to be done they share out by the context. */
void run_together(size_t helpers, void *(*run)(void *context), void *context);

#endif
