// A guest without a system, for arm64: writes each frame's own address into the frame, and sleeps. It looks like a Linux
// kernel (an "Image") to the toolstack, which puts it at the beginning of its RAM.

        .text
        .globl  _start
_start: b       1f
        .long   0
        .quad   0                       // offset of the text in RAM
        .quad   end - _start            // size
        .quad   0xA                     // little-endian, pages of 4 KiB, anywhere in RAM
        .quad   0, 0, 0
        .ascii  "ARM\x64"
        .long   0
        // The frames behind its own one, up to 32 MiB; also where the toolstack has put something.
1:      mov     x0, #0x40000000
        add     x1, x0, #0x1000
        mov     x2, #0x42000000
2:      mov     x3, x1
        str     x1, [x3], #8
3:      str     xzr, [x3], #8
        tst     x3, #0xFFF
        b.ne    3b
        mov     x1, x3
        cmp     x1, x2
        b.lo    2b
        dsb     sy
4:      wfi
        b       4b
end:
