/*
 * protection.c — hides what a protected branch lets through, and what is said to who is refused.
 */
#include "refs/protection.h"

bool protection_any(const struct protection *protection)
{
	return protection_binds(protection) || !id_is_zero(&protection->rules);
}

bool protection_binds(const struct protection *protection)
{
	return protection->flags || protection->publishers[0];
}

bool protection_equal(const struct protection *a, const struct protection *b)
{
	return a->flags == b->flags && strcmp(a->publishers, b->publishers) == 0 &&
	       id_equal(&a->rules, &b->rules);
}

bool protection_read_only(const struct protection *protection)
{
	return protection->flags != 0;
}

static bool is_member(const struct protection *protection, const struct ref_rights *rights)
{
	if (!protection->publishers[0])
		return true;
	return rights && rights->member && rights->member(rights->context, protection->publishers);
}

static int fail_member(const struct protection *protection, const char *branch,
                       struct message *message)
{
	return fail(message, -ERR_REFUSED,
	            "%s is protected: only members of the group '%s' may move it, and you are not "
	            "one; ask one of them to publish",
	            branch, protection->publishers);
}

static int check_audits(const struct protection *protection, const char *branch,
                        const struct ref_rights *rights, struct message *message)
{
	if (id_is_zero(&protection->rules))
		return fail(message, -ERR_REFUSED,
		            "%s is protected: it needs its audits passed, and no audits are "
		            "configured for it; its administrators do that, or `lakectl "
		            "unprotect %s`",
		            branch, branch);
	if (!rights || !rights->audited)
		return fail(message, -ERR_REFUSED,
		            "%s is protected: it needs its audits passed; make a branch and "
		            "`lakectl publish BRANCH --into %s`",
		            branch, branch);
	if (!id_equal(&rights->rules, &protection->rules))
		return fail(message, -ERR_REFUSED,
		            "%s is protected: its audits were changed meanwhile, and the new ones "
		            "have not been run; publish again",
		            branch);
	return 0;
}

int protection_check(const struct protection *protection, const char *branch,
                     const struct ref_rights *rights, struct message *message)
{
	if ((protection->flags & PROTECT_DIRECT_WRITES) && (!rights || !rights->merged))
		return fail(message, -ERR_REFUSED,
		            "%s is protected: no direct writes; make a branch (`lakectl branch "
		            "create NAME %s`), change that and `lakectl publish NAME --into %s`",
		            branch, branch, branch);
	if (!is_member(protection, rights))
		return fail_member(protection, branch, message);
	return protection->flags & PROTECT_AUDITS
	               ? check_audits(protection, branch, rights, message)
	               : 0;
}

int protection_check_name(const struct protection *protection, const char *branch,
                          const struct ref_rights *rights, struct message *message)
{
	if (protection->flags)
		return fail(message, -ERR_REFUSED,
		            "%s is protected: it cannot be created, deleted, renamed or restored; "
		            "its administrators can lift that: `lakectl unprotect %s`",
		            branch, branch);
	return is_member(protection, rights) ? 0 : fail_member(protection, branch, message);
}
