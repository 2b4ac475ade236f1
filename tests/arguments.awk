# Reads tests/test_arguments.c and mohawk.h and writes what the test calls: each public function with every parameter taken from ARG(type) of that file,
# and for each description CHANGE(type) from which its fields are changed one at a time. What has no ARG is listed in `unknown`.
# awk -f tests/arguments.awk tests/test_arguments.c mohawk.h >arguments.h

FILENAME != header && FILENAME ~ /mohawk\.h$/ { header = FILENAME }
FILENAME != header {
  if (match($0, /^ARG\([a-z_A-Z0-9]+/)) known[substr($0, 5, RLENGTH - 4)] = 1
  if (match($0, /^BASE\([a-z_A-Z0-9]+/)) base[substr($0, 6, RLENGTH - 5)] = 1
  next
}
/^#ifndef MOHAWK_H$/ { inside = 1 }
/^#endif \/\* MOHAWK_H \*\/$/ { inside = 0 }
!inside { next }
{
  line = $0
  while (1) { # comments
    if (comment) {
      at = index(line, "*/")
      if (!at) { line = ""; break }
      line = substr(line, at + 2)
      comment = 0
    }
    at = index(line, "/*")
    if (!at) break
    rest = index(substr(line, at + 2), "*/")
    if (rest)
      line = substr(line, 1, at - 1) " " substr(line, at + 2 + rest + 1)
    else {
      text = text " " substr(line, 1, at - 1)
      comment = 1
      line = ""
    }
  }
  if (directive || line ~ /^[ ]*#/) { # and directives
    directive = line ~ /\\$/
    next
  }
  text = text " " line
}

function trim(s) { gsub(/^[ \t]+|[ \t]+$/, "", s); return s }

# "const mhk_real *const *" -> "const_mhk_real_pconst_p"
function mangled(type) {
  gsub(/[ ]+/, " ", type)
  gsub(/ ?\* ?/, "_p", type)
  type = trim(type)
  gsub(/ /, "_", type)
  return type
}

# splits at the separator outside of parentheses and braces
function pieces(s, separator, out,   i, n, depth, c, start) {
  n = 0
  depth = 0
  start = 1
  for (i = 1; i <= length(s); i++) {
    c = substr(s, i, 1)
    if (c == "(" || c == "{") depth++
    else if (c == ")" || c == "}") depth--
    else if (c == separator && depth == 0) {
      out[++n] = trim(substr(s, start, i - start))
      start = i + 1
    }
  }
  if (trim(substr(s, start)) != "") out[++n] = trim(substr(s, start))
  return n
}

# sets TYPE and NAME of a declaration with one name
function declared(s,   at) {
  s = trim(s)
  if (match(s, /\(\*[a-z_A-Z0-9]+\)/)) {
    NAME = substr(s, RSTART + 2, RLENGTH - 3)
    TYPE = "function_" mangled(trim(substr(s, 1, RSTART - 1)))
    return
  }
  match(s, /[a-z_A-Z0-9]+$/)
  NAME = substr(s, RSTART)
  TYPE = mangled(substr(s, 1, RSTART - 1))
}

# the changes of a description's fields, under the path to it
function changes(type, path, indent,   i, n, k, list, names, first, field) {
  n = pieces(fields[type], ";", list)
  for (i = 1; i <= n; i++) {
    if (list[i] ~ /\(/) {
      declared(list[i])
      printf "%sCHANGE_POINTER(\"%s\", d->%s%s)\n", indent, path NAME, path, NAME
      continue
    }
    k = pieces(list[i], ",", names)
    match(names[1], /[ *][a-z_A-Z0-9]+(\[[^]]*\])?$/)
    first = trim(substr(names[1], 1, RSTART))
    sub(/[*]+$/, "", first)
    names[1] = trim(substr(names[1], length(first) + 1))
    first = trim(first)
    one_field(first, names, k, path, indent)
  }
}
function one_field(type, names, k, path, indent,   j, name, bare, last) {
  bare = type
  sub(/^const /, "", bare)
  sub(/^struct /, "", bare)
  for (j = 1; j <= k; j++) {
    name = names[j]
    if (name ~ /\*/ || bare ~ /_fn$|^void$/) {
      sub(/^[* ]*(const)?[* ]*/, "", name)
      printf "%sCHANGE_POINTER(\"%s\", d->%s%s)\n", indent, path name, path, name
    } else {
      if (match(name, /\[.*\]$/)) name = substr(name, 1, RSTART - 1) "[0]"
      if (bare in fields)
        changes(bare, path name ".", indent)
      else if (bare == "double")
        printf "%sCHANGE_DOUBLE(\"%s\", d->%s%s)\n", indent, path name, path, name
      else if (bare ~ /^(int|size_t|mhk_index|unsigned char|u?int[0-9]+_t)$/ || bare in enums)
        printf "%sCHANGE_INTEGER(%s, \"%s\", d->%s%s)\n", indent, bare, path name, path, name
      else
        missing("a field `" path name "` has the type `" bare "`: let tests/arguments.awk change it")
    }
  }
}
function missing(what) { unknown[++unknowns] = what }

END {
  count = pieces(text, ";", statement)
  for (s = 1; s <= count; s++) {
    line = statement[s]
    if (match(line, /typedef enum [a-z_0-9]+/)) enums[substr(line, RSTART + 13, RLENGTH - 13)] = 1
    if (match(line, /struct [a-z_0-9]+ \{/)) {
      name = substr(line, RSTART + 7, RLENGTH - 9)
      body = substr(line, RSTART + RLENGTH)
      sub(/\}[^}]*$/, "", body)
      fields[name] = body
    }
  }
  print "/* made by tests/arguments.awk */"
  for (name in base) {
    printf "static int change_%s(%s *d, int n, const char **what) {\n  int at = 1;\n  (void)d, (void)what;\n", name, name
    if (!(name in fields)) missing("BASE(" name ") of tests/test_arguments.c is no struct of mohawk.h")
    changes(name, "", "  ")
    printf "  return at;\n}\nstatic const %s *arg_const_%s_p(const call *c, int i) {\n  static %s d[8];\n  int k;\n", name, name, name
    printf "  for (k = 0; k < 8; k++) base_%s(&d[k]);\n  if (c->pick[i] == 1) return NULL;\n  if (c->pick[i] == 2) memset(&d[0], 0, sizeof d[0]);\n", name
    printf "  if (c->pick[i] > 2) change_%s(d, c->pick[i] - 2, &changed);\n  return d;\n}\n", name
    printf "static int count_const_%s_p(void) {\n  static %s d;\n  return change_%s(&d, -1, NULL) + 2;\n}\n", name, name, name
    known["const_" name "_p"] = 1
  }
  for (s = 1; s <= count; s++) {
    line = statement[s]
    if (!match(line, /MHKDEF /)) continue
    line = substr(line, RSTART + 7)
    sub(/ *__attribute__.*$/, "", line)
    match(line, /mhk_[a-z_0-9]+\(/)
    result = mangled(substr(line, 1, RSTART - 1))
    name = substr(line, RSTART, RLENGTH - 1)
    list = substr(line, RSTART + RLENGTH)
    sub(/\)[^)]*$/, "", list)
    n = pieces(list, ",", parameter)
    arguments = ""
    table = ""
    used = 0
    good = 1
    for (i = 1; i <= n; i++) {
      if (parameter[i] == "void" || parameter[i] == "...") continue
      declared(parameter[i])
      if (!(TYPE in known) && TYPE ~ /^const_/ && substr(TYPE, 7) in known) TYPE = substr(TYPE, 7)
      if (!(TYPE in known)) {
        sub(/[a-z_A-Z0-9]+$/, "", parameter[i])
        missing(name "() has a parameter `" NAME "` of a type that has no values yet: add ARG(" TYPE ", " trim(parameter[i]) ", ...) to tests/test_arguments.c")
        good = 0
      }
      arguments = arguments (used ? ", " : "") "arg_" TYPE "(c, " used ")"
      table = table (used ? ", " : "") "{\"" NAME "\", \"" TYPE "\", count_" TYPE "}"
      used++
    }
    if (!good) continue
    functions[++n_functions] = "  {\"" name "\", call_" name ", " used ", " (result == "mhk_result" ? "1" : "0") ", {" (used ? table : "{NULL, NULL, NULL}") "}},"
    if (result == "void")
      body = name "(" arguments ")"
    else if (result == "mhk_result")
      body = "returned = (int)" name "(" arguments ")"
    else if (name == "mhk_create")
      body = "mhk_destroy(" name "(" arguments "))"
    else
      body = "(void)" name "(" arguments ")"
    printf "static void call_%s(const call *c) {\n  (void)c;\n  %s;\n}\n", name, body
  }
  print "static const function functions[] = {"
  for (i = 1; i <= n_functions; i++) print functions[i]
  print "};\nstatic const char *const unknown[] = {"
  for (i = 1; i <= unknowns; i++) print "  \"" unknown[i] "\","
  print "  NULL\n};"
}
