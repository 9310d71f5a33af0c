// The real program, started for a test: it prints its address as JSON and ends by SIGTERM.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

export async function startProgram(...words) {
  const program = spawn(process.env.PELAGO_PROGRAM, [...words, '--port', '0', '--json'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const lines = createInterface(program.stdout);
  const ended = once(program, 'exit');
  const [line] = await Promise.race([
    once(lines, 'line'),
    ended.then(([code]) => {
      throw new Error(`pelago ${words.join(' ')} ended with exit code ${code}`);
    }),
  ]);
  const { url } = JSON.parse(line);
  return {
    url: url.endsWith('/') ? url : `${url}/`,
    /** Returns the exit code. */
    end: async () => {
      program.kill('SIGTERM');
      return (await ended)[0];
    },
  };
}
