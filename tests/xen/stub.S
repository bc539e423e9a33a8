/*
 * A PVH guest without a kernel: it writes into each frame of its RAM from 2 MiB on that frame's own address, 8 bytes,
 * and then waits for ever. What a program reads of it can be told right or wrong without asking anyone.
 */
        .set    FIRST, 2 << 20          /* above what the domain builder loads: this program, struct hvm_start_info */

        .section .note.Xen, "a", @note
        .long   4, 4, 18                /* XEN_ELFNOTE_PHYS32_ENTRY: of 4 bytes, as its name */
        .asciz  "Xen"
        .long   _start

        .text
        .globl  _start
_start:                                 /* 32 bits, no paging, ebx: struct hvm_start_info */
        mov     40(%ebx), %eax          /* its memory map; the first entry is the RAM from 0 on: */
        mov     (%eax), %edx            /* address */
        add     8(%eax), %edx           /* size */
        mov     $FIRST, %edi
next:   mov     %edi, (%edi)
        movl    $0, 4(%edi)
        add     $4096, %edi
        cmp     %edx, %edi
        jb      next
        sti                             /* halted for good without interrupts, it would be powered off */
wait:   hlt
        jmp     wait

        .section .note.GNU-stack, "", @progbits
