/*
 * A PVH guest without a kernel. It fills its RAM from 2 MiB on: each frame gets its own address, as 8 bytes. Then it
 * waits forever. So any byte of a dump can be checked without another source.
 */
        .set    FIRST, 2 << 20          /* above what the domain builder loads: this program, struct hvm_start_info */

        .section .note.Xen, "a", @note
        .long   4, 4, 18                /* XEN_ELFNOTE_PHYS32_ENTRY; name and value have 4 bytes */
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
        sti                             /* Xen powers off a guest that halts with interrupts off */
wait:   hlt
        jmp     wait

        .section .note.GNU-stack, "", @progbits
