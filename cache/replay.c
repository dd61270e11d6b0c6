/*
 * replay.c — hides when reads count as coming again, and how much is staked on it.
 *
 * Recognized are periods of a few runs, when the last two (or three) are where as many consecutive
 * ones were earlier, shifted by the same. How many guesses are outstanding is at most twice as many
 * as were right: as that grows the shift becomes known more precisely, too, which guesses several
 * periods ahead need. After a run that was not expected nothing is guessed until one was; two in a
 * row end it, as does more that was not than was.
 */
#include "cache/replay.h"

#define KIB ((int64_t)1 << 10)
#define JOIN_BYTES (64 * KIB)               /* reads so close are one run */
#define BACK_BYTES (128 * KIB)              /* the kernel's reads overtake each other */
#define RECENT_RUNS 32                      /* a read may go on from */
#define SHIFT_MIN (256 * KIB)               /* less is reading on with gaps */
#define TOLERANCE_MIN ((uint64_t)(8 * KIB)) /* of two shifts that count as the same */
#define TOLERANCE_MAX ((uint64_t)(48 * KIB))
#define TOLERANCE_PART 16      /* of the shift */
#define SURE_PLACES_MAX 8      /* periods so short are recognized by two runs */
#define NEAR_BYTES (128 * KIB) /* of where it was expected is as expected */
#define SPREAD_FIRST (8 * KIB)
#define SPREAD_MAX (32 * KIB)
#define MARGIN_MIN (4 * KIB)
#define LENGTH_MAX ((uint64_t)(2048 * KIB)) /* more is reading on */
#define OUTSTANDING_MAX 48
#define PROVEN_FIRST 2 /* runs by which a period is recognized; fewer left: it was none */
#define PERIODS_KEPT 16

static uint64_t magnitude(int64_t value)
{
	return value < 0 ? (uint64_t)-value : (uint64_t)value;
}

static struct replay_run *run_at(struct replay *replay, uint64_t number)
{
	return &replay->runs[number % REPLAY_RUNS_MAX];
}

/* Of run `number` from the one `places` before it. */
static int64_t shift_of(struct replay *replay, uint64_t number, uint64_t places)
{
	return (int64_t)run_at(replay, number)->start -
	       (int64_t)run_at(replay, number - places)->start;
}

static uint64_t length_of(struct replay *replay, uint64_t number)
{
	return run_at(replay, number)->end - run_at(replay, number)->start;
}

/* -- recognizing -- */

/* Of runs about so long: short ones lie more closely, and there may be more of them. */
static bool is_same_shift(int64_t a, int64_t b, uint64_t length)
{
	uint64_t tolerance = TOLERANCE_MIN + length / 2, part = magnitude(a) / TOLERANCE_PART;
	if (tolerance > TOLERANCE_MAX)
		tolerance = TOLERANCE_MAX;
	if (tolerance > part)
		tolerance = part;
	return magnitude(a) >= SHIFT_MIN && magnitude(a - b) <= tolerance;
}

static bool is_same_length(uint64_t a, uint64_t b)
{
	uint64_t larger = a > b ? a : b, smaller = a > b ? b : a;
	return larger - smaller <= larger / 4 + 16 * KIB;
}

/* Periods that lie one after the other are unlikely to arise by chance; one run each is not. */
static bool is_orderly(struct replay *replay, uint64_t last, uint64_t places, int64_t shift)
{
	uint64_t low = UINT64_MAX, high = 0;
	for (uint64_t i = 1; i <= places; i++) {
		uint64_t start = run_at(replay, last - i)->start;
		low = start < low ? start : low;
		high = start > high ? start : high;
	}
	return places > 1 && places <= SURE_PLACES_MAX && high - low < magnitude(shift);
}

static bool comes_again(struct replay *replay, uint64_t places)
{
	uint64_t last = replay->run_count - 1;
	int64_t shift = shift_of(replay, last, places);
	uint64_t length = length_of(replay, last - 1);
	if (!is_same_shift(shift, shift_of(replay, last - 1, places), length))
		return false;
	/* The last run is not over. */
	bool alike = is_same_length(length, length_of(replay, last - 1 - places)) &&
	             length_of(replay, last) <= length_of(replay, last - places) * 5 / 4 + 16 * KIB;
	if (alike && is_orderly(replay, last, places, shift))
		return true;
	return last >= places + 2 && places + 2 < REPLAY_RUNS_MAX &&
	       is_same_shift(shift, shift_of(replay, last - 2, places), length);
}

static void forget(struct replay *replay)
{
	replay->place_count = 0;
	replay->guess_count = 0;
}

static void begin(struct replay *replay, uint64_t places)
{
	uint64_t last = replay->run_count - 1;
	int64_t shift = shift_of(replay, last, places), before = shift_of(replay, last - 1, places);
	forget(replay);
	replay->place_count = places;
	replay->shift = (shift + before) / 2;
	replay->spread = (SPREAD_FIRST + magnitude(shift - before)) / 2;
	if (replay->spread < SPREAD_FIRST)
		replay->spread = SPREAD_FIRST;
	replay->proven = PROVEN_FIRST;
	replay->strays = 0;
	replay->next = 0;
	for (uint64_t i = 0; i < places; i++) {
		uint64_t number = last - places + 1 + i;
		int64_t start = (int64_t)run_at(replay, number)->start;
		struct replay_place *place = &replay->places[i];
		*place = (struct replay_place){.first = start,
		                               .seen = start,
		                               .anchor = start,
		                               .length = length_of(replay, number),
		                               .run = number};
		if (number + 2 <= last)
			continue;
		place->first = start - shift_of(replay, number, places);
		place->first_period = -1;
		if (length_of(replay, number - places) > place->length)
			place->length = length_of(replay, number - places);
	}
}

static void recognize(struct replay *replay)
{
	for (uint64_t places = 1; places <= REPLAY_PLACES_MAX && places + 2 <= replay->run_count;
	     places++)
		if (comes_again(replay, places)) {
			begin(replay, places);
			return;
		}
}

/* -- what was guessed -- */

static void drop_guess(struct replay *replay, size_t i)
{
	replay->guess_count--;
	memmove(replay->guesses + i, replay->guesses + i + 1,
	        (replay->guess_count - i) * sizeof(*replay->guesses));
}

/* Who reads further on left these out. */
static void drop_passed(struct replay *replay, uint64_t number)
{
	for (size_t i = 0; i < replay->guess_count;) {
		if (replay->guesses[i].number + replay->place_count < number) {
			drop_guess(replay, i);
			replay->proven /= 2;
		} else {
			i++;
		}
	}
}

static void measure_shift(struct replay *replay)
{
	int64_t way = 0, periods = 0;
	for (size_t i = 0; i < replay->place_count; i++) {
		struct replay_place *place = &replay->places[i];
		if (place->period - place->first_period >= PERIODS_KEPT) {
			place->first += (place->seen - place->first) / 2;
			place->first_period += (place->period - place->first_period) / 2;
		}
		way += place->seen - place->first;
		periods += place->period - place->first_period;
	}
	if (periods)
		replay->shift = way / periods;
}

/* Where guess `number` begins, by what is known now. */
static int64_t expected(const struct replay *replay, uint64_t number)
{
	const struct replay_place *place = &replay->places[number % replay->place_count];
	int64_t period = 1 + (int64_t)(number / replay->place_count);
	return place->anchor + (period - place->period) * replay->shift;
}

static void was_right(struct replay *replay, const struct replay_guess *guess, uint64_t start)
{
	struct replay_place *place = &replay->places[guess->number % replay->place_count];
	int64_t off = (int64_t)start - guess->start;
	place->anchor = guess->start + off / 2;
	place->seen = (int64_t)start;
	place->period = 1 + (int64_t)(guess->number / replay->place_count);
	place->run = replay->run_count - 1;
	replay->spread = (replay->spread * 7 + magnitude(off)) / 8;
	replay->proven++;
	replay->strays = 0;
	measure_shift(replay);
	for (size_t i = 0; i < replay->guess_count; i++)
		replay->guesses[i].start = expected(replay, replay->guesses[i].number);
}

/* Index of the one that a run which begins so fulfils; guess_count: none. */
static size_t find_guess(const struct replay *replay, uint64_t start, uint64_t end)
{
	size_t found = replay->guess_count;
	uint64_t least = UINT64_MAX;
	for (size_t i = 0; i < replay->guess_count; i++) {
		const struct replay_guess *guess = &replay->guesses[i];
		uint64_t off = magnitude((int64_t)start - guess->start);
		bool within = (int64_t)start < guess->start + (int64_t)guess->length &&
		              (int64_t)end > guess->start;
		if ((within || off <= NEAR_BYTES) && off < least) {
			least = off;
			found = i;
		}
	}
	return found;
}

/* -- reading -- */

/* The run that the read goes on from grows; false when there is none. */
static bool joins(struct replay *replay, uint64_t start, uint64_t end)
{
	for (uint64_t i = 0; i < RECENT_RUNS && i < replay->run_count; i++) {
		struct replay_run *run = run_at(replay, replay->run_count - 1 - i);
		if (start > run->end + JOIN_BYTES || end + BACK_BYTES < run->start ||
		    start + BACK_BYTES < run->start)
			continue;
		run->start = start < run->start ? start : run->start;
		run->end = end > run->end ? end : run->end;
		return true;
	}
	return false;
}

bool replay_read(struct replay *replay, uint64_t start, uint64_t end)
{
	if (joins(replay, start, end))
		return false;
	*run_at(replay, replay->run_count++) = (struct replay_run){start, end};
	if (!replay->place_count) {
		recognize(replay);
		return false;
	}
	size_t i = find_guess(replay, start, end);
	if (i < replay->guess_count) {
		struct replay_guess guess = replay->guesses[i];
		drop_guess(replay, i);
		was_right(replay, &guess, start);
		drop_passed(replay, guess.number);
		if (replay->proven == 0)
			forget(replay);
		return true;
	}
	replay->proven = (replay->proven + 1) / 2;
	if (++replay->strays > 1 || replay->proven < PROVEN_FIRST) {
		forget(replay);
		recognize(replay);
	}
	return false;
}

/* Of a bell curve five sixths are within one and a half average deviations; of the others most are
 * saved by the rounding to chunks. */
static int64_t margin_of(const struct replay *replay)
{
	uint64_t spread = replay->spread < SPREAD_MAX ? replay->spread : SPREAD_MAX;
	int64_t margin = (int64_t)(spread + spread / 2);
	return margin < MARGIN_MIN ? MARGIN_MIN : margin;
}

static bool grant(int64_t from, int64_t to, uint64_t size, uint64_t bytes_max,
                  struct extent *ret_range)
{
	from = from < 0 ? 0 : from;
	to = to > (int64_t)size ? (int64_t)size : to;
	if (to <= from || (uint64_t)(to - from) > bytes_max)
		return false;
	*ret_range = (struct extent){(uint64_t)from, (uint64_t)to};
	return true;
}

/* A guess of several periods ahead is the farther off the less was known then of the shift: what it
 * lacks by now, one end at a time. */
static bool next_correction(struct replay *replay, uint64_t size, uint64_t bytes_max,
                            struct extent *ret_range)
{
	int64_t margin = margin_of(replay), least = margin / 2;
	for (size_t i = 0; i < replay->guess_count; i++) {
		struct replay_guess *guess = &replay->guesses[i];
		int64_t end = guess->start + (int64_t)guess->length;
		if (guess->start - least < guess->from &&
		    grant(guess->start - margin, guess->from, size, bytes_max, ret_range)) {
			guess->from = guess->start - margin;
			return true;
		}
		if (end + least > guess->to &&
		    grant(guess->to, end + margin, size, bytes_max, ret_range)) {
			guess->to = end + margin;
			return true;
		}
	}
	return false;
}

bool replay_next(struct replay *replay, uint64_t size, uint64_t bytes_max, struct extent *ret_range)
{
	uint64_t most = replay->proven * 2;
	if (!replay->place_count || replay->strays)
		return false;
	if (next_correction(replay, size, bytes_max, ret_range))
		return true;
	if (replay->guess_count >= (most < OUTSTANDING_MAX ? most : OUTSTANDING_MAX))
		return false;
	struct replay_place *place = &replay->places[replay->next % replay->place_count];
	uint64_t length = length_of(replay, place->run);
	place->length = length > place->length ? length : (place->length * 7 + length) / 8;
	length = place->length < LENGTH_MAX ? place->length : LENGTH_MAX;
	int64_t start = expected(replay, replay->next), margin = margin_of(replay);
	struct replay_guess guess = {.start = start,
	                             .length = length,
	                             .from = start - margin,
	                             .to = start + (int64_t)length + margin,
	                             .number = replay->next};
	if (!grant(guess.from, guess.to, size, bytes_max, ret_range))
		return false;
	replay->guesses[replay->guess_count++] = guess;
	replay->next++;
	return true;
}

bool replay_expects(const struct replay *replay, uint64_t at)
{
	for (size_t i = 0; i < replay->place_count; i++) {
		const struct replay_place *place = &replay->places[i];
		uint64_t length = place->length < LENGTH_MAX ? place->length : LENGTH_MAX;
		if ((int64_t)at > place->seen && (int64_t)at <= place->seen + (int64_t)length)
			return true;
	}
	return false;
}
