/* Threads that signals are not for; the same work by several; who hears that one will wait. */
#include "store/thread.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <unistd.h>

#undef fail
#include <cmocka.h>

static void *note_mask(void *context)
{
	pthread_sigmask(SIG_SETMASK, NULL, context);
	return NULL;
}

static void signals_are_not_for_it(void **state)
{
	sigset_t before, inside, after;
	pthread_t thread;
	(void)state;
	note_mask(&before);
	assert_int_equal(thread_start(&thread, note_mask, &inside), 0);
	note_mask(&after);
	pthread_join(thread, NULL);
	for (int signal = 1; signal < 32; signal++) {
		assert_int_equal(sigismember(&after, signal), sigismember(&before, signal));
		if (signal != SIGKILL && signal != SIGSTOP)
			assert_int_equal(sigismember(&inside, signal), 1);
	}
}

struct work {
	atomic_uint runs, at_once;
	unsigned wanted;
	pthread_t caller;
	atomic_bool caller_ran;
};

/* Returns when as many as wanted run it. */
static void *work(void *context)
{
	struct work *work = context;
	if (pthread_equal(pthread_self(), work->caller))
		work->caller_ran = true;
	work->at_once++;
	for (int i = 0; i < 100000 && work->at_once < work->wanted; i++)
		usleep(100);
	work->runs++;
	return NULL;
}

static void several_do_it_and_the_caller(void **state)
{
	static const unsigned helpers[] = {0, 1, 7, TOGETHER_MAX, 10 * TOGETHER_MAX};
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(helpers); i++) {
		unsigned most = helpers[i] < TOGETHER_MAX ? helpers[i] : TOGETHER_MAX;
		struct work together = {.wanted = most + 1, .caller = pthread_self()};
		run_together(helpers[i], work, &together);
		assert_int_equal(together.at_once, most + 1);
		assert_int_equal(together.runs, most + 1);
		assert_true(together.caller_ran);
	}
}

static void count(void *context)
{
	++*(unsigned *)context;
}

static void *block(void *context)
{
	(void)context;
	thread_about_to_block();
	return NULL;
}

static void who_gave_the_work_hears_that_it_waits(void **state)
{
	unsigned told = 0;
	pthread_t thread;
	(void)state;
	thread_about_to_block(); /* nobody listens */
	thread_when_blocking(count, &told);
	thread_about_to_block();
	thread_about_to_block();
	assert_int_equal(told, 2);
	assert_int_equal(thread_start(&thread, block, NULL), 0); /* that one has nobody */
	pthread_join(thread, NULL);
	assert_int_equal(told, 2);
	thread_when_blocking(NULL, NULL);
	thread_about_to_block();
	assert_int_equal(told, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(signals_are_not_for_it),
	        cmocka_unit_test(several_do_it_and_the_caller),
	        cmocka_unit_test(who_gave_the_work_hears_that_it_waits),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
