// Two pages, one build. Names carry no hash: the files are committed, and a name that changes with
// every build would make every change a rename; the server answers with ETags instead.
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

const api = process.env.PELAGO_API ?? 'http://127.0.0.1:8000';

export default defineConfig({
  base: './',
  plugins: [svelte()],
  build: {
    target: 'es2022',
    modulePreload: false,
    cssCodeSplit: true,
    // A font or picture inside a style sheet would be a data: address, which the pages' policy refuses.
    assetsInlineLimit: 0,
    rollupOptions: {
      input: ['chat.html', 'dashboard.html'],
      output: {
        entryFileNames: 'assets/[name].js',
        chunkFileNames: 'assets/shared.js',
        assetFileNames: (asset) => (/chat|dashboard/.test(asset.names[0] ?? '') ? 'assets/[name][extname]' : 'assets/shared[extname]'),
      },
    },
  },
  server: { proxy: { '/v1': api, '/api': api } },
});
