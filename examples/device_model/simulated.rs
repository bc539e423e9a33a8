//! A simulated host, with a guest whose driver uses the disk.

use std::sync::Once;
use std::time::{Duration, Instant};

use xenmap::GuestKind;
use xenmap::mock::{MockDomain, MockHost};

use super::Result;
use super::driver::Driver;
use super::image::Image;
use super::model::{Model, Options};

const RAM_FRAMES: usize = 16 << 10;
const DISK_SIZE: u64 = 8 << 20;

/// Serves a guest that makes at least this many requests, and prints the results.
pub(crate) fn run(requests: usize, queues: u16, cache: usize) -> Result<()> {
    let host = MockHost::new();
    let domain = host.create_domain(GuestKind::Pvh, RAM_FRAMES);
    domain.pause(); // as "xl create -p" does
    let image = Image::temporary(DISK_SIZE)?;
    let name = "a temporary file".to_owned();
    let options = Options { image, name, queues, cache, is_beside_qemu: false, server: None };
    let model = Model::open(&host.open()?, domain.domid(), options)?;

    let ended = Once::new();
    let (driven, served) = std::thread::scope(|scope| {
        let guest = scope.spawn(|| {
            let _end = End { domain: &domain, ended: &ended };
            drive(&domain, &model, requests)
        });
        let end = End { domain: &domain, ended: &ended };
        let served = model.run(|| domain.unpause());
        drop(end);
        (guest.join(), served)
    });
    served?;
    let (took, modified) = driven.map_err(|_| "the driver has panicked")??;
    println!("domain {} is gone: {}", domain.domid(), model.statistics());
    let (requests, _) = model.device.disk.counts();
    let rate = u128::from(requests) * 1_000_000 / took.as_micros().max(1);
    println!("{rate} requests per second, and all answers were right");
    println!("{modified} frames were dirtied during migration");
    // Xen keeps a guest that has died as a zombie while anything of it is mapped.
    println!("{} zombie while the server exists", host.zombies().len());
    drop(model);
    println!("{} zombies after that", host.zombies().len());
    if host.zombies().is_empty() { Ok(()) } else { Err("some frames are still mapped".into()) }
}

/// Uses the disk, and "migrates" the guest for part of the time: Xen logs which frames are modified, and the device
/// model reports those that it writes. Returns the time that it took, and how many frames were reported.
fn drive(domain: &MockDomain, model: &Model, requests: usize) -> Result<(Duration, u64)> {
    let started = Instant::now();
    let mut driver = Driver::start(domain, vec![0; usize::try_from(DISK_SIZE)?])?;
    driver.run(requests.div_ceil(3))?;

    domain.log_dirty();
    model.server.cache().track_dirty(true);
    driver.run(requests.div_ceil(3))?;
    let reported = model.server.report_dirty()?;
    model.server.cache().track_dirty(false);
    if domain.take_dirty().len() as u64 != reported {
        return Err("what was reported is not what Xen has logged".into());
    }

    driver.run(requests.div_ceil(3))?;
    Ok((started.elapsed(), reported))
}

/// Destroys the guest when either side ends, whatever the reason, so that the other one does not wait forever.
struct End<'a> {
    domain: &'a MockDomain,
    ended: &'a Once,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.ended.call_once(|| self.domain.destroy());
    }
}
