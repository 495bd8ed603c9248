// Ring 0: everything this guest ever runs there. On a KVM_PVM host each of these instructions is interpreted, so
// there are few of them and the tables are built by the assembler. (AT&T syntax.)
//
//   PVH entry, 32 bit, paging off, EBX = hvm_start_info -> long mode -> IRETQ to ring 3, user_start(start_info, cpu)
//   Linux's entry, 64 bit, RSI = zero page              -> the same, with the zero page as start_info
//   INIT/SIPI, 16 bit                                   -> the same, with start_info = 0
//
// Operands from Rust: {main} ring-3 entry, {fault} ring-3 fault report, {counts} u32 per interrupt vector.

    .set MAX_CPUS, 255
    .set TSS_SIZE, 0x2080           // 0x68 bytes, 8 KiB of I/O permission bits (all 0: allowed), the 0xff after them
    .set R0_STACK, 1024
    .set R3_STACK, 16384            // of an application processor; the boot processor has BOOT_STACK, which follows
    .set BOOT_STACK, 512 * 1024

    // PVH: XEN_ELFNOTE_PHYS32_ENTRY.
    .section .note.pvh, "a", @note
    .align 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_start

    // Identity map of 0-4 GiB in 2 MiB pages, user-accessible throughout, MMIO included.
    .section .tables, "aw", @progbits
    .align 4096
pml4:
    .quad pdpt + 0x27
    .fill 511, 8, 0
pdpt:
    .quad pds + 0x27, pds + 0x1027, pds + 0x2027, pds + 0x3027
    .fill 508, 8, 0
pds:
    .set i, 0
    .rept 2048
    .quad i * 0x200000 + 0xe7
    .set i, i + 1
    .endr

    .section .data, "aw", @progbits
    .align 16
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff        // 0x08 ring 0, 32 bit: only on the way of an AP
    .quad 0x00af9b000000ffff        // 0x10 ring 0, 64 bit
    .quad 0x00cf93000000ffff        // 0x18 ring 0 data
    .quad 0
    .quad 0x00cff3000000ffff        // 0x2b ring 3 data
    .quad 0x00affb000000ffff        // 0x33 ring 3, 64 bit
    .quad 0
    .fill MAX_CPUS * 2, 8, 0        // 0x40 + 16 * cpu: TSS
gdt_end:
    .align 16
gdt_ptr:
    .word gdt_end - gdt - 1
    .quad gdt
    .align 16
idt_ptr:
    .word 4095
    .quad idt
no_idt:
    .word 0
    .quad 0
    .align 4
    .globl ap_next
ap_next:
    .long 1

    .section .bss, "aw", @nobits
    .align 4096
idt:
    .skip 4096
tss_area:
    .skip MAX_CPUS * TSS_SIZE
    .align 16
r0_stacks:
    .skip MAX_CPUS * R0_STACK
r3_stacks:
    .skip MAX_CPUS * R3_STACK
    .globl boot_stack_floor
boot_stack_floor:
    .skip BOOT_STACK
boot_stack_top:
boot_info:
    .skip 8

    .section .boot, "ax", @progbits
    .code32
    .globl pvh_start
pvh_start:
    cli
    cld
    movl %ebx, boot_info
    movb $0xff, %al
    outb %al, $0x21
    outb %al, $0xa1
    xorl %ebp, %ebp
    lgdt gdt_ptr
enter_long:                         // EBP = cpu index
    movl $0x620, %eax
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x901, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80050033, %eax
    movl %eax, %cr0
    ljmpl $0x10, $long_start

    .code64
    .globl linux_start
linux_start:                        // as the ELF header has it; CS is 0x10 already, and so it is in our own table
    cli
    cld
    movl %esi, boot_info
    movb $0xff, %al
    outb %al, $0x21
    outb %al, $0xa1
    xorl %ebp, %ebp
    lgdt gdt_ptr
    movl $0x620, %eax
    movq %rax, %cr4
    movl $pml4, %eax
    movq %rax, %cr3
    movl $0xc0000080, %ecx
    movl $0x901, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80050033, %eax
    movq %rax, %cr0

long_start:
    movl $0x18, %eax
    movl %eax, %ss
    movl $0x2b, %eax
    movl %eax, %ds
    movl %eax, %es

    // This CPU's TSS and its descriptor.
    imull $R0_STACK, %ebp, %edx
    leal r0_stacks + R0_STACK(%edx), %esp
    imull $TSS_SIZE, %ebp, %eax
    addl $tss_area, %eax
    movq %rsp, 4(%rax)
    movw $0x68, 0x66(%rax)
    movb $0xff, 0x2068(%rax)
    movl %ebp, %ebx
    shll $4, %ebx
    addl $0x40, %ebx
    movl %eax, %edx
    shll $16, %edx
    orl $0x2068, %edx
    movl %edx, gdt(%rbx)
    movl %eax, %edx
    andl $0xff000000, %edx
    shrl $16, %eax
    movzbl %al, %eax
    orl %eax, %edx
    orl $0x8900, %edx
    movl %edx, gdt + 4(%rbx)
    movq $0, gdt + 8(%rbx)
    ltr %bx

    testl %ebp, %ebp
    jnz 2f
    movl $idt, %edi
    movl $stubs, %eax
1:  movl %eax, %edx
    shrl $16, %edx
    movw %ax, (%rdi)
    movw $0x10, 2(%rdi)
    movw $0x8e00, 4(%rdi)
    movw %dx, 6(%rdi)
    addl $16, %eax
    addl $16, %edi
    cmpl $stubs_end, %eax
    jb 1b
    movb $0xee, idt + 3 * 16 + 5    // INT3 from ring 3 is the ring-0 call
2:  lidt idt_ptr

    movl $boot_stack_top - 8, %edx
    testl %ebp, %ebp
    jz 3f
    imull $R3_STACK, %ebp, %edx
    leal r3_stacks + R3_STACK - 8(%edx), %edx
3:
    movl boot_info, %edi
    movl %ebp, %esi
    pushq $0x2b
    pushq %rdx
    pushq $0x202
    pushq $0x33
    pushq ${main}
    iretq

    // One stub of 16 bytes for each vector.
    .align 16
stubs:
    .set v, 0
    .rept 256
    .align 16
    .if v == 3
    jmp ring0_call
    .elseif v < 32
    .if (v == 8) || ((v >= 10) && (v <= 14)) || (v == 17) || (v == 21) || (v == 29) || (v == 30)
    .else
    pushq $0
    .endif
    pushq $v
    jmp fault
    .else
    pushq $v
    jmp interrupt
    .endif
    .set v, v + 1
    .endr
    .align 16
stubs_end:

interrupt:                          // count, EOI, done
    pushq %rax
    movl 8(%rsp), %eax
    lock incl {counts}(,%rax,4)
    movl $0xfee000b0, %eax
    movl $0, (%rax)
    popq %rax
    addq $8, %rsp
    iretq

fault:                              // hand it to ring 3, which has the UART: fault(vector, error code, rip, cr2)
    popq %rdi
    popq %rsi
    movq (%rsp), %rdx
    movq %cr2, %rcx
    movq ${fault}, (%rsp)
    movq $0x33, 8(%rsp)
    movq 24(%rsp), %rax
    subq $256, %rax
    andq $-16, %rax
    subq $8, %rax
    movq %rax, 24(%rsp)
    movq $0x2b, 32(%rsp)
    iretq

ring0_call:                         // EAX = function, RDI and RSI its arguments, RAX its result
    cmpl $0, %eax
    je 10f
    cmpl $1, %eax
    je 11f
    cmpl $2, %eax
    je 12f
    cmpl $3, %eax
    je 13f
    cmpl $4, %eax
    je 14f
    movq %cr3, %rax                 // 5: flush the TLB
    movq %rax, %cr3
    iretq
10: cmpl %esi, (%rdi)               // 0: sleep unless the u32 at RDI has moved on from ESI
    jne 1f
    sti
    hlt
    cli
1:  iretq
11: movl %edi, %ecx                 // 1: RDMSR
    rdmsr
    shlq $32, %rdx
    orq %rdx, %rax
    iretq
12: movl %edi, %ecx                 // 2: WRMSR
    movl %esi, %eax
    movq %rsi, %rdx
    shrq $32, %rdx
    wrmsr
    iretq
13: lidt no_idt                     // 3: triple fault
    ud2
14: cli                             // 4: this CPU sleeps for good
    hlt
    jmp 14b

    // Copied to a page below 1 MiB for INIT/SIPI. It reaches everything by absolute address but its GDT pointer.
    .code16
    .globl ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    movw %cs, %ax
    movw %ax, %ds
    lgdtl ap_gdt_ptr - ap_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $0x08, $ap_protected
ap_gdt_ptr:
    .word gdt_end - gdt - 1
    .long gdt
ap_trampoline_end:

    .code32
ap_protected:
    movl $0x18, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $1, %ebp
    lock xaddl %ebp, ap_next
    jmp enter_long
    .code64
