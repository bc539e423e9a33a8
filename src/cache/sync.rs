//! The cache's synchronisation primitives: from the standard library or, to test all interleavings, from loom.

#[cfg(not(loom))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(loom))]
pub(super) mod atomic {
    pub(in crate::cache) use std::sync::atomic::{AtomicU64, Ordering, fence};
}
#[cfg(not(loom))]
pub(super) use cell::UnsafeCell;

#[cfg(loom)]
pub(super) use loom::{
    cell::UnsafeCell,
    sync::{Condvar, Mutex, MutexGuard, atomic},
};

/// `std::cell::UnsafeCell` with loom's interface.
#[cfg(not(loom))]
mod cell {
    #[derive(Debug)]
    pub(in crate::cache) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(in crate::cache) fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        #[inline]
        pub(in crate::cache) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        pub(in crate::cache) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }
}
