/* The program: example.c, with the library from wrpo.o. It is found as a system header, since private.h makes the
   compiler warn about the library. 00_form.sh compiles example.c with all warnings. */
#include "example.c"
