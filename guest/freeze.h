/* File systems that hold still for a moment. All of it is the agent's own thread's, but for the freezing itself, which may take long. */
#ifndef ROOST_FREEZE_H
#define ROOST_FREEZE_H

#include "frame.h"

/* `mounts` is like /proc/self/mounts; "" refuses to freeze. Thaws what a former agent may have left. Returns the descriptor that becomes
   readable when freeze_moved is to be called, -1 with errno. */
int freeze_open(const char *mounts);
/* A freeze or thaw frame; it is answered now or later. */
void freeze_frame(const struct frame *frame);
void freeze_moved(void);
/* The host is gone: nobody else would thaw. */
void freeze_abandon(void);
/* Milliseconds until freeze_expire must be called, -1 for never. */
int freeze_timeout(void);
void freeze_expire(void);

#endif
