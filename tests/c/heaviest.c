// A scheduler in C: runs whoever is heaviest. There is no C library for the bare
// target; what the bindings need of one is at the end.
#include "scheduler_plugin.h"
#include <stdlib.h>
#include <string.h>

void exports_wharf_policy_lifecycle_describe(exports_wharf_policy_lifecycle_identity_t *ret) {
    scheduler_plugin_string_dup(&ret->name, "heaviest");
    scheduler_plugin_string_dup(&ret->version, "0.1.0");
    ret->state_schema = 0;
    ret->oldest_schema = 0;
}

bool exports_wharf_policy_lifecycle_configure(exports_wharf_policy_lifecycle_list_setting_t *settings,
                                              exports_wharf_policy_lifecycle_list_task_t *tasks,
                                              scheduler_plugin_string_t *err) {
    bool good = settings->len == 0;
    if (!good)
        scheduler_plugin_string_dup(err, "there are no settings");
    exports_wharf_policy_lifecycle_list_setting_free(settings);
    exports_wharf_policy_lifecycle_list_task_free(tasks);
    return good;
}

void exports_wharf_policy_lifecycle_save(scheduler_plugin_list_u8_t *ret) {
    ret->ptr = NULL;
    ret->len = 0;
}

bool exports_wharf_policy_lifecycle_restore(uint32_t schema, scheduler_plugin_list_u8_t *state,
                                            scheduler_plugin_string_t *err) {
    (void)schema;
    (void)err;
    scheduler_plugin_list_u8_free(state);
    return true;
}

void exports_wharf_policy_scheduler_next(exports_wharf_policy_scheduler_view_t *view,
                                         exports_wharf_policy_scheduler_choice_t *ret) {
    size_t best = 0;
    for (size_t i = 1; i < view->ready.len; i++)
        if (view->ready.ptr[i].weight > view->ready.ptr[best].weight)
            best = i;
    ret->replica = view->ready.ptr[best].replica;
    ret->generation = view->ready.ptr[best].generation;
    ret->slice = 0;
    exports_wharf_policy_scheduler_view_free(view);
}

// Memory: pieces of powers of two from 16 bytes on, with a list of free ones for each
// size. In front of each, its power.
union piece {
    uint32_t power;
    union piece *next;
    uint64_t whole[2];
};

extern union piece __heap_base;
static union piece *spare[32], *top = &__heap_base;

void *malloc(size_t size) {
    uint32_t power = 4;
    while (((size_t)1 << power) < size)
        power++;
    union piece *piece = spare[power];
    if (piece) {
        spare[power] = piece->next;
    } else {
        piece = top;
        top += 1 + ((size_t)1 << power) / sizeof *piece;
        while ((uintptr_t)top > __builtin_wasm_memory_size(0) << 16)
            if (__builtin_wasm_memory_grow(0, 1) == SIZE_MAX)
                abort();
    }
    piece->power = power;
    return piece + 1;
}

void free(void *memory) {
    if (!memory)
        return;
    union piece *piece = (union piece *)memory - 1;
    uint32_t power = piece->power;
    piece->next = spare[power];
    spare[power] = piece;
}

void *realloc(void *memory, size_t size) {
    void *copy = malloc(size);
    if (memory) {
        size_t len = (size_t)1 << ((union piece *)memory - 1)->power;
        memcpy(copy, memory, len < size ? len : size);
        free(memory);
    }
    return copy;
}

void *memcpy(void *restrict to, const void *restrict from, size_t len) {
    for (size_t i = 0; i < len; i++)
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    return to;
}

size_t strlen(const char *text) {
    size_t len = 0;
    while (text[len])
        len++;
    return len;
}

_Noreturn void abort(void) {
    __builtin_trap();
}
