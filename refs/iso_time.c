/*
 * iso_time.c — hides the calendar: ISO 8601 times to UTC milliseconds and back.
 */
#include "refs/history.h"

#include <stdio.h>

#define MS_PER_DAY ((int64_t)86400000)

/* Days since 1970-01-01 and back, proleptic Gregorian: Howard Hinnant, "chrono-Compatible
 * Low-Level Date Algorithms", days_from_civil and civil_from_days. */
static int64_t days_from_date(int64_t year, int month, int day)
{
	year -= month <= 2;
	int64_t era = (year >= 0 ? year : year - 399) / 400;
	int64_t year_of_era = year - era * 400;
	int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
	int64_t day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;

	return era * 146097 + day_of_era - 719468;
}

static void date_from_days(int64_t days, int64_t *ret_year, int *ret_month, int *ret_day)
{
	days += 719468;
	int64_t era = (days >= 0 ? days : days - 146096) / 146097;
	int64_t day_of_era = days - era * 146097;
	int64_t year_of_era =
	        (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
	int64_t day_of_year =
	        day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
	int64_t shifted_month = (5 * day_of_year + 2) / 153;

	*ret_day = (int)(day_of_year - (153 * shifted_month + 2) / 5 + 1);
	*ret_month = (int)(shifted_month < 10 ? shifted_month + 3 : shifted_month - 9);
	*ret_year = year_of_era + era * 400 + (*ret_month <= 2);
}

static int days_in_month(int year, int month)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	bool leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;

	return days[month - 1] + (month == 2 && leap);
}

/* Exactly `count` digits, value between `min` and `max`. */
static bool take_number(const char **at, int count, int min, int max, int *ret_value)
{
	int value = 0;

	for (int i = 0; i < count; i++) {
		char c = (*at)[i];

		if (c < '0' || c > '9')
			return false;
		value = value * 10 + (c - '0');
	}
	*at += count;
	*ret_value = value;
	return value >= min && value <= max;
}

static bool take(const char **at, char wanted)
{
	if (**at != wanted)
		return false;
	(*at)++;
	return true;
}

static bool take_fraction(const char **at, int *ret_ms)
{
	int digits = 0, ms = 0;

	for (; **at >= '0' && **at <= '9'; (*at)++, digits++) {
		if (digits < 3)
			ms = ms * 10 + (**at - '0');
	}
	for (int i = digits; i < 3; i++)
		ms *= 10;
	*ret_ms = ms;
	return digits > 0 && digits <= 9;
}

static bool take_zone(const char **at, int *ret_minutes)
{
	int hours, minutes, sign = **at == '-' ? -1 : 1;

	*ret_minutes = 0;
	if (take(at, 'Z') || **at == '\0')
		return true;
	if (!take(at, '+') && !take(at, '-'))
		return false;
	if (!take_number(at, 2, 0, 23, &hours) || !take(at, ':') ||
	    !take_number(at, 2, 0, 59, &minutes))
		return false;
	*ret_minutes = sign * (hours * 60 + minutes);
	return true;
}

int time_parse(const char *iso, int64_t *ret_ms)
{
	int year, month, day, zone_minutes;
	int hour = 23, minute = 59, second = 59, ms = 999; /* the end of what is not said */

	if (!take_number(&iso, 4, 1, 9999, &year) || !take(&iso, '-') ||
	    !take_number(&iso, 2, 1, 12, &month) || !take(&iso, '-') ||
	    !take_number(&iso, 2, 1, days_in_month(year, month), &day))
		return -ERR_INVALID;
	if (take(&iso, 'T')) {
		if (!take_number(&iso, 2, 0, 23, &hour) || !take(&iso, ':') ||
		    !take_number(&iso, 2, 0, 59, &minute))
			return -ERR_INVALID;
		if (take(&iso, ':')) {
			if (!take_number(&iso, 2, 0, 59, &second))
				return -ERR_INVALID;
			if (take(&iso, '.') && !take_fraction(&iso, &ms))
				return -ERR_INVALID;
		}
	}
	if (!take_zone(&iso, &zone_minutes) || *iso != '\0')
		return -ERR_INVALID;
	*ret_ms = days_from_date(year, month, day) * MS_PER_DAY +
	          (((int64_t)hour * 60 + minute - zone_minutes) * 60 + second) * 1000 + ms;
	return 0;
}

void time_format(int64_t ms, char ret_text[32])
{
	int64_t days = ms / MS_PER_DAY, rest = ms % MS_PER_DAY, year;
	int month, day;

	if (rest < 0) {
		rest += MS_PER_DAY;
		days--;
	}
	date_from_days(days, &year, &month, &day);
	snprintf(ret_text, 32, "%04lld-%02d-%02dT%02d:%02d:%02d.%03dZ", (long long)year, month, day,
	         (int)(rest / 3600000), (int)(rest / 60000 % 60), (int)(rest / 1000 % 60),
	         (int)(rest % 1000));
}
