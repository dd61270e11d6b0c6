/*
 * mappings — whether a local file may still be written to by somebody who has closed it.
 *
 * A memory mapping of a file that is passed through belongs to the local file, not to the handle it
 * was made through: close(2) releases the handle, and the pages are written to for as long as the
 * mapping lives, without a word to us. A file in that state is as good as open for writing: were it
 * committed, its staging file would become a cached copy whose bytes still change.
 *
 * Holds nothing. Any thread; looks at this host's processes, never waits for the store.
 */
#ifndef FS_MAPPINGS_H
#define FS_MAPPINGS_H

#include <stdbool.h>
#include <stdint.h>

/* Cheap, and true too often: false when nobody but `fd`, open for reading and writing, has the file
 * open or mapped. */
bool mappings_possible(int fd);

/*
 * Whether it is mapped for writing. `fd`: any other descriptor of it, for reading alone. `shown`:
 * its st_ino on the mount, by which /proc tells mappings. `ours`: this process may have it open for
 * writing.
 */
bool mappings_exist(int fd, uint64_t shown, bool ours);

#endif
