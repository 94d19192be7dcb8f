//! Pings who is on its wire, by frames of its own: `ping OWN-IP/PREFIX PEER-IP COUNT`.
//!
//! With a count of 0 it only answers, for ever. Else it exits 0 when all were answered.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use core::net::Ipv4Addr;

use embassy_net::icmp::{
    ChecksumCapabilities, IcmpEndpoint, IcmpSocket, Icmpv4Message, Icmpv4Packet, Icmpv4Repr,
    PacketMetadata, SendError,
};
use embassy_net::{Config, Ipv4Cidr, StackResources, StaticConfigV4};
use wharf::timer::{Duration, Instant, Timer, with_timeout};
use wharf::{ExitCode, println, rand_core::TryRng, task};

/// How long an answer may take, the question for the peer's address included: a peer
/// that has only just started is asked again.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// What tells its answers from those to others on the same guest.
const IDENT: u16 = 1;

#[wharf::main(net = ["lan"])]
async fn main() -> ExitCode {
    let Some((own, peer, count)) = arguments() else {
        println!("usage: ping OWN-IP/PREFIX PEER-IP COUNT");
        return ExitCode::from(2);
    };
    let interface = match wharf::net::open("lan") {
        Ok(interface) => interface,
        Err(error) => {
            println!("no network: {error}");
            return ExitCode::FAILURE;
        }
    };
    let config = Config::ipv4_static(StaticConfigV4 {
        address: own,
        gateway: None,
        dns_servers: Default::default(),
    });
    let resources = Box::leak(Box::new(StackResources::<2>::new()));
    let Ok(seed) = wharf::random::rng().try_next_u64();
    let (stack, mut runner) = embassy_net::new(interface, config, resources, seed);
    task::spawn(async move { runner.run().await });
    stack.wait_config_up().await;
    println!("{own} is up");
    if count == 0 {
        core::future::pending::<()>().await;
    }

    let (mut received, mut to_send) = ([0; 512], [0; 512]);
    let (mut in_meta, mut out_meta) = ([PacketMetadata::EMPTY; 4], [PacketMetadata::EMPTY; 4]);
    let mut socket = IcmpSocket::new(
        stack,
        &mut in_meta,
        &mut received,
        &mut out_meta,
        &mut to_send,
    );
    if let Err(error) = socket.bind(IcmpEndpoint::Ident(IDENT)) {
        println!("no socket: {error:?}");
        return ExitCode::FAILURE;
    }
    let mut answered = 0;
    for number in 1..=count {
        let start = Instant::now();
        match with_timeout(PATIENCE, ask(&socket, peer, number)).await {
            Ok(Ok(())) => {
                answered += 1;
                let time = start.elapsed().as_micros();
                println!("{number}: {peer} answered in {time} us");
            }
            Ok(Err(error)) => println!("{number}: {peer} cannot be asked: {error:?}"),
            Err(_) => println!("{number}: {peer} did not answer"),
        }
        Timer::after(PAUSE).await;
    }
    println!("{answered} of {count} answered");
    if answered == count {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Sends one echo request and returns when its answer is there.
async fn ask(socket: &IcmpSocket<'_>, peer: Ipv4Addr, number: u16) -> Result<(), SendError> {
    let question = Icmpv4Repr::EchoRequest {
        ident: IDENT,
        seq_no: number,
        data: b"Is anybody there?",
    };
    let mut bytes = [0; 64];
    let message = &mut bytes[..question.buffer_len()];
    let mut packet = Icmpv4Packet::new_unchecked(&mut *message);
    question.emit(&mut packet, &ChecksumCapabilities::default());
    socket.send_to(message, peer).await?;
    loop {
        // What is too long is no answer to this.
        let len = socket.recv_from(&mut bytes).await.map_or(0, |(len, _)| len);
        if let Ok(packet) = Icmpv4Packet::new_checked(&bytes[..len])
            && packet.msg_type() == Icmpv4Message::EchoReply
            && packet.echo_seq_no() == number
        {
            return Ok(());
        }
    }
}

fn arguments() -> Option<(Ipv4Cidr, Ipv4Addr, u16)> {
    let mut args = wharf::args();
    let (own, prefix) = args.next()?.split_once('/')?;
    let prefix = prefix.parse().ok().filter(|bits| *bits <= 32)?;
    let own = Ipv4Cidr::new(own.parse().ok()?, prefix);
    let peer = args.next()?.parse().ok()?;
    let count = args.next()?.parse().ok()?;
    Some((own, peer, count))
}
