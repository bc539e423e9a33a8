//! Random actions.

use proptest::prelude::*;

use super::{PORTS, VCPUS};

#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// Does what a process does that starts to serve ports: creates a server, maps and enables it, binds its channels.
    Start(usize, usize),
    Create,
    /// Maps the page of a server's requests.
    Map(u16),
    Enable(u16, bool),
    Add(u16, usize, usize),
    Remove(u16, usize, usize),
    /// Binds the channels of a server that has none, as a process does that starts or that adopts it.
    Bind(u16),
    /// Unbinds and unmaps, as the death of a process does.
    Die(u16),
    DestroyServer(u16),
    Access {
        vcpu: usize,
        port: usize,
        size: usize,
    },
    Take(usize),
    Answer(usize),
    Balloon,
    Pause,
    Unpause,
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    // Servers of which most exist, with ranges of which many overlap.
    let server = || 0..3_u16;
    let vcpu = || 0..VCPUS;
    let range = || (0..3_u16, 0..PORTS, 0..4_usize);
    prop_oneof![
        8 => (0..PORTS, 0..4_usize).prop_map(|(first, more)| Step::Start(first, first + more)),
        2 => Just(Step::Create),
        4 => server().prop_map(Step::Map),
        4 => (server(), prop::bool::weighted(0.7)).prop_map(|(server, on)| Step::Enable(server, on)),
        10 => range().prop_map(|(server, first, more)| Step::Add(server, first, first + more)),
        4 => range().prop_map(|(server, first, more)| Step::Remove(server, first, first + more)),
        6 => server().prop_map(Step::Bind),
        3 => server().prop_map(Step::Die),
        2 => server().prop_map(Step::DestroyServer),
        30 => (vcpu(), 0..PORTS, prop::sample::select(vec![1, 2, 4]))
            .prop_map(|(vcpu, port, size)| Step::Access { vcpu, port, size }),
        4 => vcpu().prop_map(Step::Take),
        24 => vcpu().prop_map(Step::Answer),
        4 => Just(Step::Balloon),
        6 => Just(Step::Pause),
        10 => Just(Step::Unpause),
    ]
}
