/*
 * The boot sector of a disk, which the BIOS loads. It has the BIOS read the sector after it, which holds a text, write
 * the text to another sector, and prints it on the serial port.
 */
        .set    TEXT, 0x7e00            /* where to read it to */
        .set    COPY, 65536             /* the sector to write: the first of the disk's second half */
        .set    SERIAL, 0x3f8

        .code16
        .text
        .globl  _start
_start:                                 /* dl: the disk's number */
        xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %ss
        mov     $_start, %sp
        cld
        mov     $packet, %si
        mov     $0x4200, %ax            /* extended read */
        int     $0x13
        jc      stop
        movl    $COPY, sector
        mov     $0x4300, %ax            /* extended write */
        int     $0x13
        jc      stop
        mov     $TEXT, %si
        mov     $SERIAL, %dx
print:  lodsb
        test    %al, %al
        jz      stop
        out     %al, %dx
        jmp     print
stop:   hlt
        jmp     stop

packet: .byte   16, 0                   /* its size */
        .word   1                       /* sectors */
        .word   TEXT, 0
sector: .quad   1

        .org    510
        .byte   0x55, 0xaa

        .section .note.GNU-stack, "", @progbits
