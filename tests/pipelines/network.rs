// SPDX-License-Identifier: LGPL-2.1-or-later
//! A camera that is published again on another host.

use std::io::BufRead;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use testing::{ChildGroup, TestDir, has, skip};

use crate::support::{published, watch};

/// A network namespace, as another host has it.
struct Network(ChildGroup);

impl Network {
    fn new() -> Option<Self> {
        if !has("unshare") {
            return None;
        }
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec sleep 120"]).process_group(0);
        let mut network = ChildGroup::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
        // It prints nothing if this user may not create a network.
        network.stdout().lines().next()?.ok()?;
        Some(Self(network))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    fn path(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.pid())
    }

    fn has(&self, line: &str) -> bool {
        let mut command = Command::new("nsenter");
        command.arg(self.path()).args(line.split(' ')).status().is_ok_and(|s| s.success())
    }
}

/// Returns two connected networks, 10.77.0.1 and 10.77.0.2, if this user may create them.
fn two_hosts() -> Option<(Network, Network)> {
    let (a, b) = (Network::new()?, Network::new()?);
    let cable =
        format!("ip link add cable netns {} type veth peer name cable netns {}", a.pid(), b.pid());
    let up = |host: &Network, n| {
        host.has(&format!("ip addr add 10.77.0.{n}/24 dev cable"))
            && host.has("ip link set cable up")
    };
    (a.has(&cable) && up(&a, 1) && up(&b, 2)).then_some((a, b))
}

#[test]
fn camera_is_published_on_another_host() {
    let test = TestDir::slow("hosts");
    let Some((here, there)) = two_hosts() else {
        return skip("two networks take root, unshare and ip");
    };
    let _published = published(&test, "--size 320x240");
    let on = |host: &Network, script: &str, args: [&str; 2]| {
        let mut command = test.command("nsenter");
        command.arg(host.path()).arg(test.script(script).get_program()).args(args);
        command.env("CUFRAMES_PASSPHRASE", "only for the two of us");
        command
    };
    let _sender = ChildGroup::start(&mut on(&here, "send.sh", ["cam1", "7001"]));
    std::fs::create_dir(test.path("other")).unwrap();
    let other = TestDir::at(&test.path("other"), "hosts");
    let mut receive = on(&there, "receive.sh", ["10.77.0.1:7001", "cam1"]);
    let _receiver = ChildGroup::start(receive.env("CUFRAMES_RUNTIME_DIR", &other.dir));
    let watched = watch(&other, "cam1", "strict");
    watched.more(30);
    watched.check();
}
