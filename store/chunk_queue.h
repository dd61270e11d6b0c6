/*
 * chunk_queue — the pieces of one file on their way to the packer and into the file's lists.
 *
 * Holds:      copies of the chunks under way (QUEUE_JOBS_MAX at most), and the threads that hash
 * and compress them; none before QUEUE_ALONE_BYTES have passed, so small files cost nothing.
 * Invariants: pieces reach the list builder in the order they were added, whoever was quicker, so
 *             ids do not depend on threads.
 * Threads:    a queue belongs to one thread; its own are its business. Its lock is a leaf.
 * Included by content_store.c alone.
 */
#ifndef STORE_CHUNK_QUEUE_H
#define STORE_CHUNK_QUEUE_H

#include "store/content_list.h"

struct chunk_queue;
/* Borrows both until it is freed; the builder is touched by the functions below only. */
int chunk_queue_new(struct packer *packer, struct list_builder *builder,
                    struct chunk_queue **ret_queue);
/* Drops what was not drained; accepts NULL. */
void chunk_queue_free(struct chunk_queue *queue);
/* Add the next piece, at most CHUNK_BYTES_MAX unless it is a hole (bytes NULL). May block on the
 * store. The first failure of an earlier piece may be told now; nothing can be added after one. */
int chunk_queue_add(struct chunk_queue *queue, const uint8_t *bytes, uint64_t length,
                    struct message *message);
/* All that was added is in the builder. */
int chunk_queue_drain(struct chunk_queue *queue, struct message *message);

#endif
