//! The command line of `csi-driver`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// The CSI plugin: serves each configured backend as a CSI driver of its own on its own unix socket.
#[derive(Debug, Parser)]
#[command(name = "csi-driver", version, about, long_about = None)]
pub struct Cli {
    /// The configuration file (YAML).
    #[arg(long, env = "CSI_DRIVER_CONFIG", value_name = "FILE", required_unless_present = "backends")]
    pub config: Option<PathBuf>,

    /// Which services to serve.
    #[arg(long, env = "CSI_DRIVER_MODE", value_enum, default_value_t = Mode::All)]
    pub mode: Mode,

    /// How logs are written.
    #[arg(long, env = "CSI_DRIVER_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// What is logged: a level, or directives such as `info,csi_driver=debug`.
    #[arg(long, env = "CSI_DRIVER_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// Serve /metrics, /healthz and /readyz there, such as 127.0.0.1:9809; overrides the configuration.
    #[arg(long, env = "CSI_DRIVER_HTTP_ADDRESS", value_name = "ADDRESS")]
    pub http_address: Option<std::net::SocketAddr>,

    /// Print the configuration as it is understood, defaults filled in, and exit.
    #[arg(long)]
    pub print_config: bool,

    /// Check the configuration and the backends, and exit: 0 good, 64 bad configuration, 1 a backend does not answer.
    #[arg(long)]
    pub check: bool,

    /// Print the table of backends and what each can do (Markdown), and exit.
    #[arg(long)]
    pub backends: bool,
}

/// Which services a process serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Controller and node.
    All,
    /// Identity, Controller and GroupController.
    Controller,
    /// Identity and Node.
    Node,
}

impl Mode {
    /// Whether the controller services are served.
    pub fn controller(self) -> bool {
        self != Self::Node
    }

    /// Whether the node service is served.
    pub fn node(self) -> bool {
        self != Self::Controller
    }
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line a record for people.
    Text,
    /// A JSON object a line.
    Json,
}
