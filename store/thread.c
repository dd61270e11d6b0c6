/*
 * thread — hides how threads are kept from signals.
 */
#include "store/thread.h"

#include <signal.h>

static _Thread_local struct {
	void (*told)(void *context);
	void *context;
} blocking;

int thread_start(pthread_t *ret_thread, void *(*run)(void *context), void *context)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited */
	int problem = pthread_create(ret_thread, NULL, run, context);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return problem ? error_system(problem) : 0;
}

void thread_when_blocking(void (*told)(void *context), void *context)
{
	blocking.told = told;
	blocking.context = context;
}

void thread_about_to_block(void)
{
	if (blocking.told)
		blocking.told(blocking.context);
}

void run_together(size_t helpers, void *(*run)(void *context), void *context)
{
	pthread_t threads[TOGETHER_MAX];
	size_t started = 0;

	while (started < helpers && started < ARRAY_SIZE(threads) &&
	       thread_start(&threads[started], run, context) == 0)
		started++;
	run(context);
	for (size_t i = 0; i < started; i++)
		pthread_join(threads[i], NULL);
}
