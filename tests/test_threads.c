/* How many threads the tools choose: what they read of Linux's files, in folders that stand for
   machines. */
#include "../tools/threads.c"
#include "test.h"

#if defined(__linux__)

static char root[512];

/* an empty machine */
static void machine(const char *name) {
  char command[600];
  snprintf(root, sizeof root, "%s", test_path(name));
  snprintf(command, sizeof command, "rm -rf '%s'", root);
  CHECK(system(command) == 0, "cannot empty %s", root);
}

static void file(const char *path, const char *text) {
  char full[1100], *slash;
  snprintf(full, sizeof full, "%s%s", root, path);
  slash = strrchr(full, '/');
  *slash = 0;
  test_make_folder(full);
  *slash = '/';
  CHECK(test_write_file(full, text, strlen(text)), "cannot write %s", full);
}

static void allow(const char *list) {
  char text[200];
  snprintf(text, sizeof text, "Name:\tmohawk\nCpus_allowed:\tff\nCpus_allowed_list:\t%s\nMems_allowed:\t1\n", list);
  file("/proc/self/status", text);
}

static void siblings(int cpu, const char *list) {
  char path[100];
  snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
  file(path, list);
}

static void expect(int cores, const char *what) {
  const int found = cli_cores(root);
  CHECK(found == cores, "%s: %d cores, not %d", what, found, cores);
}

TEST(cores_not_their_threads) {
  int i;
  machine("smt");
  for (i = 0; i < 8; i++) siblings(i, i % 4 == 0 ? "0,4\n" : i % 4 == 1 ? "1,5\n" : i % 4 == 2 ? "2,6\n" : "3,7\n");
  allow("0-7");
  expect(4, "four cores with two threads each");
  allow("4-7");
  expect(4, "their second threads");
  allow("1,5");
  expect(1, "one core");
  allow("0-2,5-6");
  expect(3, "some of both");
  machine("pairs");
  for (i = 0; i < 6; i++) siblings(i, i < 2 ? "0-1" : i < 4 ? "2-3" : "4-5");
  allow("0-5");
  expect(3, "neighbours share a core");
  machine("plain");
  allow("0-2,64");
  expect(4, "nothing is known of cores");
}

TEST(quotas_of_version_2) {
  machine("v2");
  allow("0-63");
  file("/proc/self/cgroup", "0::/pod/box\n");
  expect(64, "no files of groups");
  file("/sys/fs/cgroup/pod/box/cpu.max", "max 100000\n");
  expect(64, "no bound");
  file("/sys/fs/cgroup/pod/box/cpu.max", "200000 100000\n");
  expect(2, "two CPUs");
  file("/sys/fs/cgroup/pod/box/cpu.max", "390000 100000\n");
  expect(3, "almost four");
  file("/sys/fs/cgroup/pod/box/cpu.max", "50000 100000\n");
  expect(1, "half of one");
  file("/sys/fs/cgroup/pod/box/cpu.max", "max 100000\n");
  file("/sys/fs/cgroup/pod/cpu.max", "700000 100000\n");
  expect(7, "a group around it");
  file("/sys/fs/cgroup/cpu.max", "500000 100000\n");
  expect(5, "what a container sees");
  allow("0-1");
  expect(2, "fewer CPUs than the quota");
}

TEST(quotas_of_version_1) {
  machine("v1");
  allow("0-15");
  file("/proc/self/cgroup", "12:cpuset:/a\n5:cpu,cpuacct:/box\n1:name=systemd:/a\n");
  file("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n"); /* of another controller's group */
  file("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
  file("/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n");
  file("/sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n");
  expect(16, "no bound");
  file("/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "400000\n");
  expect(4, "four CPUs");
  file("/proc/self/cgroup", "5:cpuacct,cpu:/elsewhere\n");
  file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n");
  file("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "50000\n");
  expect(3, "what a container sees");
}

TEST(files_that_make_no_sense) {
  static const char *const lists[] = {"", "x", "-", "5-2", "9999-10000", ",,", "-4"};
  size_t i;
  machine("nothing");
  expect(0, "no files");
  for (i = 0; i < sizeof lists / sizeof *lists; i++) {
    allow(lists[i]);
    expect(0, lists[i]);
  }
  allow("0-1");
  siblings(0, "rubbish");
  siblings(1, "");
  file("/proc/self/cgroup", "rubbish\n0:\n0::\n0::nowhere\n");
  file("/sys/fs/cgroup/cpu.max", "0 0\n");
  expect(2, "rubbish");
}

TEST(this_machine) {
  const int cores = cli_cores("");
  CHECK(cores >= 1 && cores <= MOST_CPUS, "%d cores", cores);
}

#endif

int main(int argc, char **argv) {
  test_begin(argc, argv);
#if defined(__linux__)
  RUN(cores_not_their_threads);
  RUN(quotas_of_version_2);
  RUN(quotas_of_version_1);
  RUN(files_that_make_no_sense);
  RUN(this_machine);
#endif
  return test_end();
}
