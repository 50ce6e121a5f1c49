# SPDX-License-Identifier: Apache-2.0
"""Build of the ROS 2 package (ament_python); `training/` is not installed on a robot."""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "depth_node"

setup(
    name=PACKAGE,
    version="0.1.0",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={
        PACKAGE: ["models/*.onnx", "models/*.yaml", "models/LICENSE.*", "ros/*.xml", "py.typed"]
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (f"share/{PACKAGE}", ["package.xml"]),
        (f"share/{PACKAGE}/launch", glob("launch/*.launch.py")),
        (f"share/{PACKAGE}/config", [*glob("config/*"), f"{PACKAGE}/ros/fastdds.xml"]),
    ],
    python_requires=">=3.10",
    # What the robot needs at run time. The ROS packages come from apt (package.xml), not from pip.
    install_requires=["setuptools", "numpy>=1.26", "scipy", "opencv-python-headless", "pyyaml"],
    extras_require={
        "onnxruntime": ["onnxruntime"],
        "gpu": ["cuda-bindings", "nvidia-cuda-nvrtc-cu12"],
        "fast": ["numba"],
        "bags": ["rosbags"],
        "rerun": ["rerun-sdk"],
        "tools": ["rich"],
        "models": ["huggingface_hub", "onnx"],
        "test": ["pytest"],
    },
    zip_safe=False,
    maintainer="depth_node maintainers",
    maintainer_email="maintainers@depth-node.example",
    description="Dense metric depth from a camera and sparse LiDAR, with its fit quality.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    if Path(__file__).with_name("README.md").is_file()
    else "",
    long_description_content_type="text/markdown",
    url="https://depth-node.example",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    entry_points={
        "console_scripts": [
            "depth_node = depth_node.start:node",
            "depth_cameras = depth_node.start:cameras",
            "depth_tools = depth_node.start:tools",
        ],
    },
)
