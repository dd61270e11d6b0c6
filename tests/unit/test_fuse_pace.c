/*
 * The quicker way of waiting is found, kept, and given up when it is not the quicker one any more.
 */
#include "fs/mount/fuse_pace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

struct machine {
	int64_t cost_ns[2]; /* of each way */
	int64_t noise_ns;   /* up to so much more */
	uint64_t random;
	unsigned spent[2]; /* windows */
};

static int64_t draw(struct machine *machine, int64_t below)
{
	machine->random = machine->random * 6364136223846793005u + 1442695040888963407u;
	return below ? (int64_t)((machine->random >> 33) % (uint64_t)below) : 0;
}

static void work(struct pace *pace, struct machine *machine, unsigned windows)
{
	machine->spent[PACE_AWAKE] = machine->spent[PACE_BESIDE] = 0;
	for (unsigned i = 0; i < windows; i++) {
		enum pace_way way = pace_awake(pace) ? PACE_AWAKE : PACE_BESIDE;
		machine->spent[way]++;
		pace_measured(pace, machine->cost_ns[way] + draw(machine, machine->noise_ns));
	}
}

static void test_the_quicker_way_is_found(void **state)
{
	(void)state;
	for (enum pace_way quick = PACE_AWAKE; quick <= PACE_BESIDE; quick++) {
		struct pace pace = {0};
		struct machine machine = {.cost_ns = {30000, 30000}};
		machine.cost_ns[!quick] = 60000;
		work(&pace, &machine, 16);
		work(&pace, &machine, 1000);
		assert_true(machine.spent[quick] > 970);
		assert_true(machine.spent[!quick] > 0); /* it is looked at again */
	}
}

static void test_noise_does_not_decide(void **state)
{
	(void)state;
	struct pace pace = {0};
	struct machine machine = {.cost_ns = {30000, 60000}, .noise_ns = 25000};
	work(&pace, &machine, 5000);
	assert_true(machine.spent[PACE_AWAKE] > 4800);
}

static void test_a_change_is_noticed(void **state)
{
	(void)state;
	struct pace pace = {0};
	struct machine machine = {.cost_ns = {30000, 60000}};
	work(&pace, &machine, 1000);
	machine.cost_ns[PACE_AWAKE] = 200000;
	work(&pace, &machine, 100);
	work(&pace, &machine, 1000);
	assert_true(machine.spent[PACE_BESIDE] > 950);
	machine.cost_ns[PACE_AWAKE] = 20000;
	work(&pace, &machine, 100);
	work(&pace, &machine, 1000);
	assert_true(machine.spent[PACE_AWAKE] > 950);
}

static void test_a_window(void **state)
{
	(void)state;
	struct pace pace = {0};
	struct pace_window window = {0};
	int64_t mean_ns = 0;
	unsigned gaps = 1;
	/* The first ones are not measured; a client that does not ask is none; long ones are cut.
	 */
	while (!pace_gap(&window, &pace, gaps < 8 ? 900000 : 1000, &mean_ns)) {
		assert_false(pace_gap(&window, &pace, PACE_IDLE_NS + 1, &mean_ns));
		gaps++;
	}
	assert_true(gaps >= PACE_WINDOW && gaps < 2 * PACE_WINDOW);
	assert_int_equal(mean_ns, 1000);
	for (gaps = 1; !pace_gap(&window, &pace, PACE_IDLE_NS, &mean_ns);)
		gaps++;
	assert_int_equal(mean_ns, PACE_GAP_NS_MAX);
	/* What was measured of one way says nothing of the other. */
	for (unsigned i = 0; i + 1 < gaps; i++)
		assert_false(pace_gap(&window, &pace, 1000, &mean_ns));
	bool awake = pace_awake(&pace);
	while (pace_awake(&pace) == awake)
		pace_measured(&pace, 1000);
	assert_false(pace_gap(&window, &pace, 1000, &mean_ns));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	        cmocka_unit_test(test_the_quicker_way_is_found),
	        cmocka_unit_test(test_noise_does_not_decide),
	        cmocka_unit_test(test_a_change_is_noticed),
	        cmocka_unit_test(test_a_window),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
