#![no_std]
#![no_main]
use understudy_ebpf as _;
