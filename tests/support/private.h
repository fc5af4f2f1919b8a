/* For the tests that call private functions of the library. They define WRPO_IMPLEMENTATION and include wrpo.h, as one
   file of a program does, and compile alone. `make` saves time: it includes this header first (-include). Then the
   public functions are not compiled again in every test, but come from build/wrpo.o, compiled once with a program's
   flags. Only the private functions that a test calls, and what they call, are compiled again; without inlining
   (-fno-inline), since otherwise the compiler works through the public ones before it drops them. */
#define WRPO_API extern __inline __attribute__((gnu_inline, noinline))
/* Each file has its own stb_ds, which allocates in that file's current arena. */
#define wrpo__stbds_rand_seed test_stbds_rand_seed
#define wrpo__stbds_hash_bytes test_stbds_hash_bytes
#define wrpo__stbds_hash_string test_stbds_hash_string
#define wrpo__stbds_stralloc test_stbds_stralloc
#define wrpo__stbds_strreset test_stbds_strreset
#define wrpo__stbds_unit_tests test_stbds_unit_tests
#define wrpo__stbds_arrgrowf test_stbds_arrgrowf
#define wrpo__stbds_arrfreef test_stbds_arrfreef
#define wrpo__stbds_hmfree_func test_stbds_hmfree_func
#define wrpo__stbds_hmget_key test_stbds_hmget_key
#define wrpo__stbds_hmget_key_ts test_stbds_hmget_key_ts
#define wrpo__stbds_hmput_default test_stbds_hmput_default
#define wrpo__stbds_hmput_key test_stbds_hmput_key
#define wrpo__stbds_hmdel_key test_stbds_hmdel_key
#define wrpo__stbds_shmode_func test_stbds_shmode_func
