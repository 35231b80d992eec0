/* What setup and seal share: files and programs of the guest, and the parts of its identity. */
#ifndef ROOST_SETUP_H
#define ROOST_SETUP_H

#include <stddef.h>
#include <sys/types.h>

#define SETUP_MARK "/var/lib/roost/setup" /* holds the machine-id that the machine was set up for */
#define SEALED "sealed" /* the journal's directory between seal and setup */
#define PRIORITY (-15) /* the rest of the system can wait until it knows who it is */
#define SSH_PID "/run/sshd.pid"

/* How much could not be done; each was said on standard error. */
extern int failures;
void fail(const char *what);

/* The whole file (1 MiB at most), "" when there is none; the caller frees it. */
char *slurp(const char *path);
/* Written beside and renamed: nobody ever sees half of it. An existing file keeps its mode and owner. */
void replace(const char *path, const char *text, mode_t mode);
/* As it is: something may be mounted on it, or hold it open. */
void overwrite(const char *path, const char *text, mode_t mode);
/* In place of whatever has this name. */
void create(const char *path, const char *text, mode_t mode);
void append_line(const char *path, const char *line);
int has_line(const char *text, const char *line);
/* The program's exit code; what it prints goes to standard error. */
int run(char *const argv[]);
/* Letters, digits and `more`, neither a dash nor a dot in front. */
int is_name(const char *text, const char *more, size_t longest);
/* Calls `act` with the directory and each name in it, but . and .. */
void each_entry(const char *directory, void (*act)(const char *directory, const char *name));

void set_clock(const char *seconds);
void set_entropy(char *hex);
void set_hostname(const char *name);
int is_id(const char *text);
/* The journal goes on where the next boot and `journalctl` look for it. What journald has open, moves along. */
void move_journal(const char *old, const char *new);
void set_machine_id(const char *id);
/* KIND BASE64-OF-THE-PRIVATE-KEY PUBLIC-LINE: `given` keys are the only ones from then on. */
void set_host_key(char *rest);
void forget_given_keys(void);
/* Makes keys where none were given and none are there, or, in a copy, where those that are there are another's. 1: there are new ones. */
int make_host_keys(int copied);
/* The SSH server that runs, 0 for none. */
pid_t ssh_server(void);
/* Has a running SSH server take the keys that are there now; it has let go of the old ones when this returns. */
void renew_ssh_server(void);
void forget_random_seeds(void);
void forget_cloud_instance(void);
/* Gives the network card with the first MAC address the second. */
void set_link(char *rest);
/* The name of the network card with this MAC address, NULL when there is none; valid until the next call. */
const char *find_card(const char *mac);
/* The DHCP clients of a tiny machine that lease for this card. */
void end_clients(const char *name);
/* Gives a network card its addresses: see card.c. Done every time. */
void set_card(char *rest, int plugged);

#endif
