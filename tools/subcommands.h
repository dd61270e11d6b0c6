/* subcommands — the table that arguments.c parses by. */
#ifndef TOOLS_SUBCOMMANDS_H
#define TOOLS_SUBCOMMANDS_H

#include "tools/arguments.h"

extern const struct subcommand subcommands[];
extern const size_t subcommand_count;

#endif
