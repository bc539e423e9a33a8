// The same for arm64: a guest without a kernel that writes each frame's address into the frame, and sleeps. To the
// toolstack it looks like a Linux kernel (an "Image"), which it puts at the start of RAM.

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
        // Fills the frames after its own one up to 32 MiB, including those that the toolstack has used.
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
