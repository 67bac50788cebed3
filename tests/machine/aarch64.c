/* Load a library of kernels for aarch64, make the calls that replay.py wrote to standard input, and write to
 * standard output what the memory holds afterwards. A program without a dynamic linker, so that qemu-aarch64 runs it
 * on a machine that has no C library for aarch64. So it loads the library itself: it has no other needs than memset,
 * memcpy and memmove. */
#include <elf.h>
#include <fenv.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static char *base;
static Elf64_Sym *symbols;
static const char *names;
static uint64_t symbol_count;

static void fail(const char *what) {
    fprintf(stderr, "aarch64.c: %s\n", what);
    exit(1);
}

static uint64_t find(const char *name) {
    for (uint64_t k = 1; k < symbol_count; k++)
        if (symbols[k].st_shndx && !strcmp(names + symbols[k].st_name, name)) return (uint64_t)base + symbols[k].st_value;
    if (!strcmp(name, "memset")) return (uint64_t)memset;
    if (!strcmp(name, "memcpy")) return (uint64_t)memcpy;
    if (!strcmp(name, "memmove")) return (uint64_t)memmove;
    fail(name);
    return 0;
}

static void relocate(Elf64_Rela *at, uint64_t bytes) {
    for (Elf64_Rela *end = at + bytes / sizeof *at; at < end; at++) {
        uint64_t *place = (uint64_t *)(base + at->r_offset);
        const char *name = names + symbols[ELF64_R_SYM(at->r_info)].st_name;
        switch (ELF64_R_TYPE(at->r_info)) {
        case R_AARCH64_RELATIVE: *place = (uint64_t)base + at->r_addend; break;
        case R_AARCH64_ABS64:
        case R_AARCH64_GLOB_DAT:
        case R_AARCH64_JUMP_SLOT: *place = find(name) + at->r_addend; break;
        default: fail("unknown relocation");
        }
    }
}

static void load(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("no library");
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *content = malloc(size);
    if (fread(content, 1, size, file) != (size_t)size) fail("library too short");
    Elf64_Ehdr *head = (Elf64_Ehdr *)content;
    Elf64_Phdr *part = (Elf64_Phdr *)(content + head->e_phoff);
    uint64_t end = 0, table[40] = {0};
    Elf64_Dyn *dynamic = 0;
    for (int k = 0; k < head->e_phnum; k++)
        if (part[k].p_type == PT_LOAD && part[k].p_vaddr + part[k].p_memsz > end) end = part[k].p_vaddr + part[k].p_memsz;
    base = mmap(0, end, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) fail("no memory");
    for (int k = 0; k < head->e_phnum; k++) {
        if (part[k].p_type == PT_LOAD) memcpy(base + part[k].p_vaddr, content + part[k].p_offset, part[k].p_filesz);
        if (part[k].p_type == PT_DYNAMIC) dynamic = (Elf64_Dyn *)(base + part[k].p_vaddr);
    }
    for (; dynamic->d_tag; dynamic++)
        if (dynamic->d_tag < 40) table[dynamic->d_tag] = dynamic->d_un.d_val;
    symbols = (Elf64_Sym *)(base + table[DT_SYMTAB]);
    names = base + table[DT_STRTAB];
    symbol_count = ((uint32_t *)(base + table[DT_HASH]))[1];
    relocate((Elf64_Rela *)(base + table[DT_RELA]), table[DT_RELASZ]);
    relocate((Elf64_Rela *)(base + table[DT_JMPREL]), table[DT_PLTRELSZ]);
    __builtin___clear_cache(base, base + end);
}

static int read_all(void *to, uint64_t bytes) { return bytes == 0 || fread(to, 1, bytes, stdin) == bytes; }

static uint64_t number(void) {
    uint64_t value;
    if (!read_all(&value, 8)) fail("input too short");
    return value;
}

/* Eight integers and eight floats in registers; the others on the stack, where each takes 64 bits. */
typedef int32_t (*function)(
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, double, double, double, double,
    double, double, double, double, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
    uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
    uint64_t, uint64_t);

int main(int count, char **arguments) {
    if (count != 2) fail("usage: aarch64 LIBRARY");
    load(arguments[1]);
    uint64_t length;
    while (read_all(&length, 8)) {
        char name[200], *place[40];
        uint64_t bytes[40], i[8] = {0}, s[32] = {0}, integers = 0, floats = 0, others = 0;
        double d[8] = {0};
        if (length > sizeof name || !read_all(name, length)) fail("name");
        uint64_t regions = number();
        if (regions > 40) fail("too many regions");
        for (uint64_t k = 0; k < regions; k++) {
            uint64_t skew = number();
            bytes[k] = number();
            place[k] = (char *)aligned_alloc(64, (bytes[k] + 191) / 64 * 64) + skew;
            if (!read_all(place[k], bytes[k])) fail("region");
        }
        for (uint64_t left = number(); left > 0; left--) {
            uint64_t kind = number(), value = number(), offset = number();
            uint64_t made = kind == 1 ? (uint64_t)(place[value] + offset)
                          : kind == 2 ? (uint64_t)place
                          : kind == 3 ? find(place[value])
                                      : value;
            if (kind == 4 && floats < 8) memcpy(&d[floats++], &made, 8);
            else if (kind != 4 && integers < 8) i[integers++] = made;
            else if (others < 32) s[others++] = made;
            else fail("too many arguments");
        }
        function called = (function)find(name);
        feclearexcept(FE_ALL_EXCEPT);
        int64_t status = called(
            i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], s[0], s[1],
            s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15], s[16], s[17],
            s[18], s[19], s[20], s[21], s[22], s[23], s[24], s[25], s[26], s[27], s[28], s[29], s[30], s[31]);
        int64_t raised = fetestexcept(FE_ALL_EXCEPT);
        fwrite(&status, 8, 1, stdout);
        fwrite(&raised, 8, 1, stdout);
        for (uint64_t k = 0; k < regions; k++) {
            fwrite(place[k], 1, bytes[k], stdout);
            free((void *)((uint64_t)place[k] & ~63ull));
        }
    }
    return 0;
}
