/* settings.h: the options of a command in files, by the names that they have on the command
   line. */
#ifndef MOHAWK_SETTINGS_H
#define MOHAWK_SETTINGS_H

#include "cli.h"
#include "foreign.h"

/* Reads a file of lines "name = value" (# starts a comment, a flag is yes or no, a name with
   several files stands once for each), or JSON: an object of settings, or one that has it as
   "settings", as run.json. Marks the options that it gives, by their place in the table. What texts
   point to stays until the program ends. Returns CLI_GO, or CLI_USAGE after a message that names
   file and line. */
int settings_read(const cli_command *c, void *settings, const char *path, unsigned char *given);
/* All options that have a value, as members of the object that is open in j or as such lines.
   Returns nothing for those whose name is in `not` (a list with NULL at its end). */
void settings_json(cli_json *j, const cli_command *c, const void *settings, const char *const *not);
void settings_lines(FILE *out, const cli_command *c, const void *settings, const char *const *not);

/* A JSON file in memory, until the program ends: its outermost object into *value. Returns CLI_GO,
   or CLI_FAILED after a message. */
int settings_json_file(const char *path, foreign_json *value);
/* A number that is a member of an object; otherwise where there is none. */
double settings_number(foreign_json object, const char *name, double otherwise);

#endif
