@ musl's .init and .fini have alignment 1. Where thumb code comes first in them they begin at an odd
@ place, and the program dies before main. This part of them is aligned, so all of them are.
.section .init, "ax", %progbits
.p2align 2
.section .fini, "ax", %progbits
.p2align 2
