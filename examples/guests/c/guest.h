/* What a guest written in C needs: the sandbox's functions, and the names that it must export.
 *
 * A vector is one byte for each item of the holdout, in its order: 0 or 1. A vector of another length, or with
 * another value, ends the run. docs/guests.md says what each call costs and when it ends the run.
 */
typedef unsigned char byte;
typedef unsigned int u32;
typedef unsigned long long u64;

#define OFFERED(name) __attribute__((import_module("env"), import_name(#name)))

/* Asks how many items of the answer part the vector has right. The answer is a symbol from 0 (none) to n - 1 (all); n
 * is the claim's --symbols. Each answer is charged log2 n bits. */
OFFERED(oracle_query) u32 oracle_query(const byte *vector, u32 items);

/* Names the vector to be judged on the sealed part: the last one before the output counts. */
OFFERED(submit_predictions) u32 submit_predictions(const byte *vector, u32 items);

/* Emits the output, once: a symbol of the same alphabet, in as many big-endian bytes as n - 1 needs. */
OFFERED(emit_structured_claim) u32 emit_structured_claim(const byte *output, u32 len);

/* Fuel used so far, divided by the claim's epoch size; 0 if the claim has none. */
OFFERED(get_logical_epoch) u64 get_logical_epoch(void);

/* The entry point, `GUEST_RUN { … }`. The linker exports the memory under the name that the sandbox wants. */
#define GUEST_RUN __attribute__((export_name("run"))) void run(void)
