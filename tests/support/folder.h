/* Files in the test's own folder, whose name is in `dir`. After test.h. */
#ifndef WRPO_FOLDER_H
#define WRPO_FOLDER_H
static char dir[64];
/* Path of a file in the folder; eight of them at a time. */
static inline const char *at(const char *name) {
    static char path[8][300];
    static int next;
    char *p = path[next++ & 7];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}
static inline void put(const char *name, const char *text) {
    FILE *f = fopen(at(name), "wb");
    if (!f) { CHECK(false, "%s cannot be written", at(name)); return; }
    fputs(text, f);
    fclose(f);
}
/* The file's bytes and a 0 after them, to be freed; NULL: there is no such file. */
static inline char *slurp(const char *path, size_t *size) {
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    const size_t n = (size_t)ftell(f);
    char *data = malloc(n + 1);
    rewind(f);
    *size = fread(data, 1, n, f);
    data[*size] = 0;
    fclose(f);
    return data;
}
static inline void shell(const char *format, const char *a, const char *b) {
    char command[600];
    snprintf(command, sizeof command, format, a, b);
    CHECK(system(command) == 0, "%s", command);
}
#endif
