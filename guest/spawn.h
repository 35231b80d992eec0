/* Starting a command from an exec frame. */
#ifndef ROOST_SPAWN_H
#define ROOST_SPAWN_H

#include "session.h"

#define EXEC_STDIN 1u
#define EXEC_PTY 2u
#define EXEC_BUILTIN 4u /* argv is given to this very program: archive, extract, setup, ... */

/* 0 and the session's pid and descriptors, or an errno; nothing is left behind then. */
int spawn(struct session *session, const uint8_t *payload, uint32_t length);

#endif
