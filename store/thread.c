/*
 * thread — hides how threads are kept from signals.
 */
#include "store/thread.h"

#include <signal.h>

int thread_start(pthread_t *ret_thread, void *(*run)(void *context), void *context)
{
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited */
	int problem = pthread_create(ret_thread, NULL, run, context);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return problem ? error_system(problem) : 0;
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
