// What `heaviest.c` has of it.
#pragma once

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t len);
size_t strlen(const char *text);
