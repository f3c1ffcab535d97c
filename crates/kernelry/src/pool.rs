//! A pool of temporaries, so that a forward pass does not allocate.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::device::Device;
use crate::{Buffer, DType, Result};

/// Counts of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct PoolStats {
    /// Allocations ready for use.
    pub free: usize,
    /// Their bytes.
    pub free_bytes: usize,
    /// Leases alive.
    pub in_use: usize,
    /// Most leases that were alive at once.
    pub high_water: usize,
    /// Requests served without an allocation.
    pub hits: u64,
    /// Requests that allocated.
    pub misses: u64,
}

#[derive(Default)]
struct State {
    /// Free allocations by bucket size in bytes.
    free: BTreeMap<usize, Vec<Buffer>>,
    stats: PoolStats,
}

/// A pool of device memory in buckets at most 12.5 % larger than the request. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    device: Device,
    state: Arc<Mutex<State>>,
}

impl Pool {
    /// An empty pool for a device.
    pub fn new(device: &Device) -> Pool {
        Pool { device: device.clone(), state: Arc::default() }
    }

    /// Leases a buffer of zeros. It returns to the pool when the lease is dropped.
    ///
    /// # Errors
    /// As [`Buffer::zeros`].
    pub fn zeros(&self, dtype: DType, shape: &[usize]) -> Result<Lease> {
        let lease = self.uninit(dtype, shape)?;
        let bytes = lease.byte_len();
        // Recycled memory holds what its last user left.
        lease.write_bytes(&vec![0; bytes])?;
        Ok(lease)
    }

    /// Leases a buffer of unspecified contents.
    ///
    /// # Errors
    /// As [`Buffer::uninit`].
    pub fn uninit(&self, dtype: DType, shape: &[usize]) -> Result<Lease> {
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| n.checked_mul(dtype.size()));
        let bucket = bucket_size(elements.unwrap_or(0));
        let recycled = {
            let mut state = self.state.lock();
            let found = state.free.get_mut(&bucket).and_then(Vec::pop);
            if found.is_some() {
                state.stats.hits += 1;
                state.stats.free -= 1;
                state.stats.free_bytes -= bucket;
            }
            found
        };
        let whole = match recycled {
            Some(buffer) => buffer,
            None => {
                // An impossible shape gets the error that a plain allocation of it gives.
                if elements.is_none_or(|n| n == 0) {
                    return Buffer::uninit(&self.device, dtype, shape).map(|buffer| self.lease(buffer.clone(), buffer));
                }
                self.state.lock().stats.misses += 1;
                Buffer::uninit(&self.device, DType::U8, &[bucket])?
            }
        };
        let view = whole.view_as(dtype, shape)?;
        Ok(self.lease(whole, view))
    }

    fn lease(&self, whole: Buffer, view: Buffer) -> Lease {
        let mut state = self.state.lock();
        state.stats.in_use += 1;
        state.stats.high_water = state.stats.high_water.max(state.stats.in_use);
        drop(state);
        Lease { pool: self.clone(), whole: Some(whole), view }
    }

    /// Drops all free memory. Leases stay valid.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        state.free.clear();
        state.stats.free = 0;
        state.stats.free_bytes = 0;
    }

    /// Counts.
    pub fn stats(&self) -> PoolStats {
        self.state.lock().stats
    }
}

/// A buffer borrowed from a [`Pool`]; it goes back when dropped, once, however it was obtained. Views cloned from it must not outlive
/// it: they would see the next user's data.
pub struct Lease {
    pool: Pool,
    whole: Option<Buffer>,
    view: Buffer,
}

impl std::ops::Deref for Lease {
    type Target = Buffer;
    fn deref(&self) -> &Buffer {
        &self.view
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.stats.in_use -= 1;
        if let Some(whole) = self.whole.take() {
            let bucket = whole.byte_len();
            state.stats.free += 1;
            state.stats.free_bytes += bucket;
            state.free.entry(bucket).or_default().push(whole);
        }
    }
}

/// Rounds up to one of eight steps between powers of two.
fn bucket_size(bytes: usize) -> usize {
    let step = (bytes.max(512).next_power_of_two() / 16).max(64);
    bytes.max(1).next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn buckets_waste_at_most_an_eighth() {
        for bytes in [513, 1000, 1025, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let bucket = bucket_size(bytes);
            assert!(bucket >= bytes && bucket as f64 <= bytes as f64 * 1.125 + 64.0, "{bytes} -> {bucket}");
        }
    }

    #[test]
    fn recycled_memory_reads_zero_and_leases_never_alias() {
        let pool = Pool::new(&Device::cpu());
        let first = pool.uninit(DType::F32, &[100]).unwrap();
        first.write(&[7.0f32; 100]).unwrap();
        drop(first);
        let again = pool.zeros(DType::F32, &[99]).unwrap();
        assert_eq!(pool.stats().hits, 1);
        assert_eq!(again.shape(), [99]);
        assert!(again.to_vec::<f32>().unwrap().iter().all(|&v| v == 0.0));
        let other = pool.zeros(DType::F32, &[99]).unwrap();
        assert!(!again.same_storage(&other));
        drop((again, other));
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.free, stats.high_water), (0, 2, 2));
        pool.clear();
        assert_eq!(pool.stats().free_bytes, 0);
    }
}
